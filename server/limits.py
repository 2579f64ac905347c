"""admit: a place among the requests in flight, or 503 before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Draining, Overloaded
from server.telemetry.metrics import Metrics


class Admission:
    """Counts requests in flight and turns away what is over the limit, or what comes after `drain()`."""

    def __init__(self, metrics: Metrics, max_inflight: int) -> None:
        self._metrics = metrics
        self._max = max_inflight
        self._inflight = 0
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Take no new requests; those in flight go on."""
        self._draining = True

    @contextmanager
    def admit(self, route: str) -> Iterator[None]:
        """Hold a place for the length of a request. Raises Overloaded or Draining."""
        if self._draining:
            self._metrics.rejected.labels("draining").inc()
            raise Draining("the server is shutting down; ask again")
        if self._inflight >= self._max:
            self._metrics.rejected.labels("inflight").inc()
            raise Overloaded(f"the server already works on {self._max} requests (max_inflight)")
        self._inflight += 1
        self._metrics.in_flight.labels(route).inc()
        try:
            yield
        finally:
            self._inflight -= 1
            self._metrics.in_flight.labels(route).dec()

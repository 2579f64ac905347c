"""admit: a place among the requests at work, a place in a bounded queue, or a refusal before any work is done."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from server.auth import Caller
from server.errors import Draining, Overloaded, RateLimited
from server.telemetry.metrics import Metrics

#: How much the newest service time counts in the moving average that `Retry-After` is made of.
SMOOTHING = 0.1
#: A client that is told to wait longer than this has better asked someone else.
MAX_RETRY_AFTER_SECONDS = 60
#: English is about four bytes a token and JSON adds some: an estimate that need not read the body.
BYTES_PER_TOKEN = 4


def estimated_tokens(content_length: str | None) -> int | None:
    """Prompt tokens that a body of this declared length may hold; None where it declares none."""
    if content_length is None or not (content_length.isascii() and content_length.isdigit()):
        return None
    return int(content_length[:20]) // BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_concurrent_per_key` counts running and waiting requests of one key; None is no limit.

    `fair` keeps room in the queue for other keys; without it one key may fill the queue.
    """

    max_running: int
    max_queued: int = 0
    max_queued_tokens: int = 1
    queue_timeout_seconds: float = 30.0
    max_concurrent_per_key: int | None = None
    fair: bool = False


State = Literal["waiting", "running", "left"]


class Place:
    """One request's place: waiting or running until `leave()`, which may be called in every state."""

    def __init__(self, admission: Admission, route: str, key: str, tokens: int) -> None:
        self._admission = admission
        self.route = route
        self.key = key
        self.tokens = tokens
        self.state: State = "waiting"
        self.counted = True
        self.since = time.monotonic()
        self.called: asyncio.Future[None] | None = None

    async def turn(self) -> None:
        """Return when the request may run. Raises Overloaded after the queue's timeout, or Draining."""
        if self.called is None:
            return
        timeout = self._admission.limits.queue_timeout_seconds
        await asyncio.wait({self.called}, timeout=timeout)
        if self.called.done():
            self.called.result()
        else:
            raise self._admission.gave_up(self)

    def leave(self) -> None:
        self._admission.left(self)


class Admission:
    """Lets `max_running` requests run, queues some more, and turns away the rest, or all after `drain()`.

    The queue is first in, first out within a key, and takes turns between keys. All methods belong to one
    event loop.
    """

    def __init__(self, metrics: Metrics, limits: Limits) -> None:
        self.limits = limits
        self._metrics = metrics
        self._running = 0
        self._queues: OrderedDict[str, deque[Place]] = OrderedDict()
        self._queued = 0
        self._queued_tokens: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._service_seconds = 0.0
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Take no new requests and send those that wait away; those that run go on."""
        self._draining = True
        for queue in list(self._queues.values()):
            for place in list(queue):
                self._unqueue(place, "drained")
                assert place.called is not None
                if not place.called.done():
                    place.called.set_exception(self._refused_draining())

    @asynccontextmanager
    async def admit(
        self, route: str, caller: Caller, tokens: int | None = 0
    ) -> AsyncIterator[Place]:
        """Hold a place for the length of a request, after waiting for it where the queue has room.

        `tokens` is an estimate of the prompt; None is unknown. Raises Overloaded, RateLimited or Draining.
        Where a client can leave while it waits, take `server.deps.admitted`.
        """
        place = self.enter(route, caller, tokens)
        try:
            await place.turn()
            yield place
        finally:
            place.leave()

    def enter(self, route: str, caller: Caller, tokens: int | None = 0) -> Place:
        """A place that runs or waits, at once. Raises Overloaded, RateLimited or Draining."""
        if self._draining:
            raise self._refused_draining()
        # An unknown length counts as all there is, so that leaving it out is no way around the limit.
        tokens = self.limits.max_queued_tokens if tokens is None else tokens
        place = Place(self, route, caller.key, tokens)
        self._check_key(place)
        if self._running < self.limits.max_running and not self._queued:
            self._run(place)
        else:
            self._enqueue(place)
        self._held[place.key] += 1
        return place

    def _check_key(self, place: Place) -> None:
        most = self.limits.max_concurrent_per_key
        if most is not None and self._held[place.key] >= most:
            raise self._rate_limited(
                "key_limit", f"this key already has {most} requests here (max_concurrent_per_key)"
            )

    def _enqueue(self, place: Place) -> None:
        limits, tokens = self.limits, sum(self._queued_tokens.values())
        free, free_tokens = limits.max_queued - self._queued, limits.max_queued_tokens - tokens
        if free < 1:
            raise self._overloaded(
                "queue_full",
                f"the server works on {limits.max_running} requests (max_running) and "
                f"{limits.max_queued} wait (max_queued)",
            )
        # An empty queue takes a prompt of any size: it could never wait otherwise.
        if self._queued and place.tokens > free_tokens:
            raise self._overloaded(
                "queue_tokens",
                f"the requests that wait hold {tokens} prompt tokens of {limits.max_queued_tokens} "
                "(max_queued_tokens); this one would be too many",
            )
        own = len(self._queues.get(place.key, ()))
        # Dynamic thresholds (Choudhury and Hahne, 1998): who has as much as is free has had its share,
        # so that one greedy key gets half of the queue, two a third each, and there is always some left.
        if limits.fair and own and own >= free:
            raise self._rate_limited(
                "key_share", f"{own} requests of this key wait already; the rest is for other keys"
            )
        place.called = asyncio.get_running_loop().create_future()
        self._queues.setdefault(place.key, deque()).append(place)
        self._queued += 1
        self._queued_tokens[place.key] += place.tokens
        self._metrics.queue_length.set(self._queued)

    def _run(self, place: Place) -> None:
        place.state = "running"
        place.since = time.monotonic()
        self._running += 1
        self._metrics.in_flight.labels(place.route).inc()

    def _unqueue(self, place: Place, outcome: str) -> None:
        queue = self._queues[place.key]
        queue.remove(place)
        if not queue:
            del self._queues[place.key]
        self._queued -= 1
        self._queued_tokens[place.key] -= place.tokens
        if not self._queued_tokens[place.key]:
            del self._queued_tokens[place.key]
        self._metrics.queue_length.set(self._queued)
        waited = time.monotonic() - place.since
        self._metrics.queue_seconds.labels(outcome).observe(waited)
        place.state = "left"

    def _call_next(self) -> None:
        while self._queued and self._running < self.limits.max_running:
            key, queue = next(iter(self._queues.items()))
            place = queue[0]
            self._queues.move_to_end(key)
            self._unqueue(place, "ok")
            self._run(place)
            assert place.called is not None
            place.called.set_result(None)

    def gave_up(self, place: Place) -> Overloaded:
        """The refusal for a place that waited too long; it is out of the queue."""
        self._unqueue(place, "timeout")
        return self._overloaded(
            "queue_timeout",
            f"no place within {self.limits.queue_timeout_seconds:g} s (queue_timeout_seconds)",
        )

    def left(self, place: Place) -> None:
        if place.called is not None and place.called.done() and not place.called.cancelled():
            place.called.exception()  # seen, also where the client left before it could be told
        if place.counted:
            place.counted = False
            self._held[place.key] -= 1
            if not self._held[place.key]:
                del self._held[place.key]
        if place.state == "waiting":
            self._unqueue(place, "cancelled")
        elif place.state == "running":
            place.state = "left"
            self._running -= 1
            self._metrics.in_flight.labels(place.route).dec()
            self._learn(time.monotonic() - place.since)
        self._call_next()

    def _learn(self, seconds: float) -> None:
        known = self._service_seconds or seconds
        self._service_seconds = known + SMOOTHING * (seconds - known)

    @property
    def retry_after_seconds(self) -> int:
        """When a place may be free: what waits, at the recent pace, between 1 and a minute."""
        waits = self._service_seconds * (self._queued + 1) / self.limits.max_running
        return min(max(math.ceil(waits), 1), MAX_RETRY_AFTER_SECONDS)

    def _overloaded(self, reason: str, message: str) -> Overloaded:
        self._metrics.rejected.labels(reason).inc()
        return Overloaded(message, retry_after_seconds=self.retry_after_seconds)

    def _rate_limited(self, reason: str, message: str) -> RateLimited:
        self._metrics.rejected.labels(reason).inc()
        return RateLimited(message, retry_after_seconds=self.retry_after_seconds)

    def _refused_draining(self) -> Draining:
        self._metrics.rejected.labels("draining").inc()
        return Draining("the server is shutting down; ask again")

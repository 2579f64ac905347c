"""Metrics pushed to a Pushgateway: of several replicas behind one URL a scrape reaches one, and nobody knows which."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.telemetry.exposition import Gateway
from server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


def own_instance() -> str:
    """What tells this process from others: host name and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@asynccontextmanager
async def pushing(gateway: Gateway, metrics: Metrics, every_seconds: float) -> AsyncIterator[None]:
    """Push at once and then regularly, while the block runs; leaving it pushes once more and takes all away."""
    pusher = _Pusher(gateway, metrics, every_seconds)
    try:
        yield
    finally:
        await asyncio.to_thread(pusher.stop)


class _Pusher:
    """Pushes from a thread of its own: nothing that waits for the gateway may ever wait for it on the event loop.

    A daemon: a gateway that does not answer holds up neither a request nor the end of the process.
    """

    def __init__(self, gateway: Gateway, metrics: Metrics, every_seconds: float) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="metrics-push", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._push()
            if self._stop.wait(self._every_seconds):
                break
        if self._push():
            self._delete()

    def stop(self) -> None:
        """Push a last time, delete, and return; without an answer from the gateway, after its timeouts."""
        self._stop.set()
        self._thread.join(3 * self._gateway.timeout_seconds)

    def _push(self) -> bool:
        """Whether the gateway took it. What fails is logged once for each time that the gateway is away."""
        gateway = self._gateway
        try:
            gateway.push(self._metrics)
        except (
            Exception
        ) as error:  # also a collector's of the engine's: the next push may go through
            if not self._away:
                log.warning(
                    "metrics cannot be pushed to %s (%s); tried again every %g s",
                    gateway.url,
                    error,
                    self._every_seconds,
                )
            self._away = True
            return False
        if self._away:
            log.info("metrics are pushed to %s again", gateway.url)
        self._away = False
        return True

    def _delete(self) -> None:
        try:
            self._gateway.delete()
        except Exception as error:
            log.warning(
                "the metrics of %s stay at %s: %s", self._gateway.instance, self._gateway.url, error
            )

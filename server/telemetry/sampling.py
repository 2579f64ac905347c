"""What `/metrics` shows of other processes' work, read regularly: nothing is looked up when the page is asked for."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from server.catalog import Catalog
from server.telemetry.index import sizes
from server.telemetry.ingests import read_totals
from server.telemetry.metrics import OTHER, Metrics

log = logging.getLogger(__name__)

#: As often as Prometheus usually looks.
SAMPLE_SECONDS = 15.0


class Sampled(Protocol):
    """An index, as far as it is sampled."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def data_dir(self) -> Path: ...


class Sampler:
    """Reads the stores' sizes from the catalog, and the ingests' totals from the data directory.

    `lease` gives the current ones and keeps them open: a server of published versions changes them, and finds the
    totals in the directory `published`. `max_stores` stores have a label of their own; `readers` are the tenants that
    may read the page.
    """

    def __init__(
        self,
        metrics: Metrics,
        lease: Callable[[], AbstractContextManager[Sampled]],
        max_stores: int,
        readers: Collection[str],
        published: Path | None = None,
    ) -> None:
        self._metrics = metrics
        self._lease = lease
        self._max_stores = max_stores
        self._readers = readers
        self._published = published
        self._failing = False

    async def watch(self, every_seconds: float = SAMPLE_SECONDS) -> None:
        """Try again and again, until it is cancelled; the first time after `every_seconds`."""
        while True:
            await asyncio.sleep(every_seconds)
            await self.attempt()

    async def attempt(self) -> None:
        """Sample; what cannot be read stays as it was, and is told of once."""
        try:
            await self.sample()
            self._failing = False
        except Exception as error:  # whatever it is, the server goes on without these numbers
            if not self._failing:
                log.warning("the index's metrics cannot be read: %s", error)
            self._failing = True

    async def sample(self) -> None:
        """Read everything once. Raises CatalogUnavailable."""
        with self._lease() as current:
            stores = await current.catalog.every_store()
            counts = await current.catalog.file_counts()
            totals = await asyncio.to_thread(read_totals, self._published or current.data_dir)
            running = await asyncio.to_thread(is_held, current.data_dir / "ingest.lock")
        metrics = self._metrics
        metrics.index = sizes(stores, counts, self._max_stores, self._readers, OTHER)
        metrics.ingests, metrics.ingest_running = totals, running


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file now; found out by sharing it for an instant."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False

"""One ingest at a time: in a data directory by an flock, and on all machines that share a catalog by its claim.

The kernel frees the one when its holder dies, the database the other.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from server.catalog import Catalog

_POLL_SECONDS = 0.1


class IngestError(Exception):
    """The root of what stops an ingest before or between files, beside retrieval's and the catalog's errors."""


class IngestBusy(IngestError):
    """Another ingest holds the data directory."""


@asynccontextmanager
async def ingest_lock(
    path: Path, timeout_seconds: float, on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Hold the lock file `path`; `on_wait` hears once, with the holder's pid, that it has to wait.

    Raises IngestBusy naming the holder after `timeout_seconds`.
    """
    descriptor = await to_thread.run_sync(_open, path)
    try:
        with anyio.move_on_after(timeout_seconds) as scope:
            waited = False
            while not _try_lock(descriptor):
                if not waited:
                    waited = True
                    on_wait(_holder(descriptor))
                await anyio.sleep(_POLL_SECONDS)
        if scope.cancelled_caught:
            raise IngestBusy(
                f"another ingest (process {_holder(descriptor)}) is still running on {path.parent} "
                f"after {timeout_seconds:g} s; try again when it has finished"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def catalog_claim(
    catalog: Catalog, timeout_seconds: float, on_wait: Callable[[str], None]
) -> AsyncIterator[None]:
    """Be the only one that ingests into this catalog; `on_wait` as in `ingest_lock`.

    Raises IngestBusy after `timeout_seconds`, and CatalogUnavailable.
    """
    async with catalog.claim() as try_claim:
        with anyio.move_on_after(timeout_seconds) as scope:
            waited = False
            while not await try_claim():
                if not waited:
                    waited = True
                    on_wait("on another machine")
                await anyio.sleep(_POLL_SECONDS)
        if scope.cancelled_caught:
            raise IngestBusy(
                "another ingest, on another machine or in another data directory, is still writing to this "
                f"catalog after {timeout_seconds:g} s; try again when it has finished"
            )
        yield


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not inherited: a Chroma child that outlives us must not keep the lock.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"

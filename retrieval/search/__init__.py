"""Dense search: vectors in Chroma, run as our own child, joined from another process, or by URL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from retrieval.errors import DataDirectoryInUse, StoreUnavailable
from retrieval.search.base import ChromaEndpoint, VectorRow, VectorStore
from retrieval.search.child import ChromaChild
from retrieval.search.chroma import ChromaStore
from retrieval.search.collections import ChromaCollections
from retrieval.search.lease import Lease, Published

__all__ = [
    "ChromaChild",
    "ChromaCollections",
    "ChromaEndpoint",
    "ChromaStore",
    "Connection",
    "VectorRow",
    "VectorStore",
    "connect",
]

logger = logging.getLogger(__name__)

#: How often a process that joined looks whether the owner has gone.
TAKE_OVER_SECONDS = 0.5


class Connection:
    """An open vector store, and how we came to it. Made by `connect`."""

    def __init__(self, endpoint: Callable[[], ChromaEndpoint]) -> None:
        self._endpoint = endpoint
        self._child: ChromaChild | None = None
        self.store: VectorStore = ChromaStore(lambda: self._endpoint())

    @property
    def owned(self) -> bool:
        """Whether the Chroma is this process's own child."""
        return self._child is not None

    @property
    def restarts(self) -> int:
        """How often our child was started again; 0 for a Chroma that is not ours."""
        return self._child.restarts if self._child is not None else 0

    def own(self, child: ChromaChild) -> None:
        """Use `child` from now on."""
        self._child = child
        self._endpoint = lambda: child.endpoint


@asynccontextmanager
async def connect(
    data_dir: Path,
    elsewhere: ChromaEndpoint | str | None = None,
    *,
    wait_seconds: float = 30.0,
    on_restart: Callable[[], None] | None = None,
) -> AsyncIterator[Connection]:
    """Open the vector store of `data_dir`, or the Chroma server `elsewhere`, which a URL may name.

    Without one: our own child, or the child of the process that owns the directory (server and
    ingestion may run side by side). When that process ends, calls raise StoreUnavailable until we have
    taken the directory over. Raises DataDirectoryInUse when the owner publishes no Chroma within
    `wait_seconds`, StoreUnavailable when Chroma cannot be started, ValueError for a malformed URL.
    """
    if elsewhere is not None:
        endpoint = ChromaEndpoint.parse(elsewhere) if isinstance(elsewhere, str) else elsewhere
        connection = Connection(lambda: endpoint)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.store.close)
            await connection.store.heartbeat()
            yield connection
        return
    found = await _own_or_join(data_dir, wait_seconds)
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(found, Lease):
            child = ChromaChild(data_dir, lease=found, on_restart=on_restart)
            await stack.enter_async_context(child)
            connection = Connection(lambda: child.endpoint)
            connection.own(child)
        else:
            joined = found.endpoint
            connection = Connection(lambda: joined)
            watch = asyncio.create_task(_take_over(connection, data_dir, on_restart))
            stack.push_async_callback(_cancel, watch)
        stack.push_async_callback(connection.store.close)
        yield connection


async def _own_or_join(data_dir: Path, wait_seconds: float) -> Lease | Published:
    """The lock, or where the holder's Chroma listens; an owner that is starting up is waited for."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return await asyncio.to_thread(Lease.take, data_dir)
        except DataDirectoryInUse as error:
            in_use = error
        published = await asyncio.to_thread(Published.read, data_dir)
        if published is not None and await _is_genuine(published):
            return published
        if time.monotonic() > deadline:
            raise DataDirectoryInUse(
                f"{in_use}, which gives no access to its Chroma: wait for it to finish or stop it"
            )
        await asyncio.sleep(0.05)


async def _take_over(
    connection: Connection, data_dir: Path, on_restart: Callable[[], None] | None
) -> None:
    """Own the Chroma once its owner has gone; runs until it is cancelled, and stops the child then."""
    while True:
        try:
            async with ChromaChild(data_dir, on_restart=on_restart) as child:
                connection.own(child)
                logger.info("the process that ran Chroma has gone; this one runs it now")
                await asyncio.Event().wait()
        except DataDirectoryInUse:
            pass
        except (StoreUnavailable, OSError) as error:
            logger.error("could not take Chroma over: %s", error)
        await asyncio.sleep(TAKE_OVER_SECONDS)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _is_genuine(published: Published) -> bool:
    """Whether the published port still belongs to the Chroma that knows the published token."""
    store = ChromaStore(published.endpoint)
    try:
        return await store.has_token(published.token)
    except StoreUnavailable:
        return False
    finally:
        await store.close()

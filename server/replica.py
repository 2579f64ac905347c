"""A server that answers from published versions: its copies of them, and the look-out for the next one."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from server.catalog import Store
from server.handover import Handover
from server.knowledge import Knowledge, Parts, open_version
from server.published import BLOBS, PublishedError, alone, current, take
from server.settings import Settings

log = logging.getLogger(__name__)

#: Makes the newest state of a mounted volume visible.
Refresh = Callable[[], Awaitable[None]]
#: Replaced versions that may still be answering; each is a Chroma and a copy on disk. No newer version is
#: taken over before one of them is done.
MAX_LEAVING = 2
#: Longest pause before a version that could not be taken over is tried again: an alert counts the tries.
MAX_PAUSE_SECONDS = 300.0


class Copies:
    """Copies of the published versions, each a folder of its own in our data directory. Made by `open_copies`."""

    def __init__(self, settings: Settings, published: Path, refresh: Refresh | None) -> None:
        self._settings = settings
        self._published = published
        self._refresh = refresh
        self._numbers = itertools.count(1)

    async def current(self) -> int:
        """The version that is published now; 0: none. Raises PublishedError."""
        if self._refresh is not None:
            try:
                await self._refresh()
            except Exception as error:  # a network's; what was visible before still is
                log.warning(
                    "%s could not be refreshed, and will be again: %s", self._published, error
                )
        return await asyncio.to_thread(current, self._published) or 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[tuple[int, Settings]]:
        """The current version's number, and settings whose data directory is a copy of it, removed at the end.

        Number 0 and an empty directory where nothing was published. Raises PublishedError, OSError.
        """
        target = self._settings.data_dir / f"copy-{next(self._numbers)}"
        try:
            version = await asyncio.to_thread(take, self._published, target, leave_out=(BLOBS,))
            here = self._settings.model_copy(update={"data_dir": target})
            here.make_data_dir()
            yield version or 0, here
        finally:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)


@asynccontextmanager
async def open_copies(
    settings: Settings, published: Path, refresh: Refresh | None
) -> AsyncIterator[Copies]:
    """Hold our data directory, in which nothing of an earlier process is left. Raises InUse, PublishedError."""
    settings.make_data_dir()
    with alone(settings.data_dir / "replica.lock", f"the data directory {settings.data_dir}"):
        for left in settings.data_dir.glob("copy-*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        copies = Copies(settings, published, refresh)
        if not await copies.current():
            log.warning("nothing is published in %s yet", published)
        yield copies


class Replica:
    """Takes newer versions over while the server runs."""

    def __init__(self, copies: Copies, handover: Handover, parts: Parts) -> None:
        self._copies = copies
        self._handover = handover
        self._parts = parts
        self._failures = 0
        self._tell()

    async def watch(self) -> None:
        """Look again and again, until it is cancelled; less often while a version cannot be taken over."""
        poll = self._parts.settings.published_poll_seconds
        handovers = self._parts.metrics.index_handovers
        while True:
            await asyncio.sleep(pause_seconds(poll, self._failures))
            try:
                if await self.look():
                    handovers.labels("ok").inc()
                self._failures = 0
            except Exception as error:  # whatever is wrong with it, the version before goes on
                self._failures += 1
                handovers.labels("failed").inc()
                log.error(
                    "the published index could not be taken over; version %d goes on answering: %s",
                    self._handover.current.version,
                    error,
                )

    async def look(self) -> bool:
        """Take the published version over if it is another one than ours; whether it was.

        Raises what keeps it from being opened; then nothing has changed.
        """
        published = await self._copies.current()
        if published in (0, self._handover.current.version):
            return False
        if self._handover.leaving >= MAX_LEAVING:
            return False
        async with AsyncExitStack() as stack:
            version, settings = await stack.enter_async_context(self._copies.taken())
            knowledge = await stack.enter_async_context(
                open_version(settings, version, self._parts)
            )
            await self._try_out(knowledge)
            before = self._handover.current.version
            self._handover.to(knowledge, stack.pop_all())
        self._tell()
        log.info("answering from version %d of the index, after version %d", version, before)
        return True

    def _tell(self) -> None:
        self._parts.metrics.index_version.set(self._handover.current.version)

    async def _try_out(self, knowledge: Knowledge) -> None:
        """Search every store once, as the first search is slow. Raises PublishedError, RetrievalError."""
        vector = await self._parts.sides.own.queries.embed("warm up")
        for store in await knowledge.catalog.every_store():
            if store.adopted is None:
                await _check(knowledge, store)
                if store.dimension == len(vector):
                    await knowledge.vectors.query(store.index_name, vector, 1)


def pause_seconds(poll_seconds: float, failures: int) -> float:
    """Until the next look: twice as long after each failure, up to MAX_PAUSE_SECONDS or one poll."""
    return min(poll_seconds * 2.0 ** min(failures, 16), max(poll_seconds, MAX_PAUSE_SECONDS))


async def _check(knowledge: Knowledge, store: Store) -> None:
    """Raises PublishedError where an index holds less than the catalog says, IndexMissing where it is damaged."""
    expected = (await knowledge.catalog.store_totals(store.id)).passages
    words = await asyncio.to_thread(knowledge.lexical.count, store.index_name)
    vectors = await knowledge.vectors.count(store.index_name)
    if min(words, vectors) < expected:
        raise PublishedError(
            f"version {knowledge.version} is not whole: of {expected} passages of the store {store.name!r} "
            f"{words} have keywords and {vectors} vectors; `groundwire ingest --publish` mends that"
        )

"""Keyword indexes that follow a catalog which other machines write too.

A store's keyword index is on each machine's own disk, and whoever ingests writes the one beside it. On every
other machine it is brought up to date from the passages in the catalog: before a search, wherever the catalog's
version of the store is ahead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path

from anyio import CancelScope, sleep, to_thread

from retrieval.errors import DataDirectoryInUse, IndexMissing, RetrievalError
from retrieval.lexical import LexicalIndex, LexicalWriter, drop
from retrieval.types import Passage
from server.catalog import Catalog, CatalogError, Membership, Store, index_name, is_store_id

log = logging.getLogger(__name__)

#: How often the catalog is asked what has changed, so that the next search finds little left to do.
LOOK_SECONDS = 5.0
#: How long who ingests waits for the index to be up to date; it is then free.
WRITER_SECONDS = 120.0
#: Files whose passages are read from the catalog in one query.
FILES_AT_ONCE = 100
_POLL_SECONDS = 0.05


@asynccontextmanager
async def open_writer(
    root: Path, store_id: str, wait_seconds: float = WRITER_SECONDS
) -> AsyncIterator[LexicalWriter]:
    """A LexicalWriter, entered and left in a thread: both block.

    Raises DataDirectoryInUse where another one is open for longer than `wait_seconds`.
    """
    until = time.monotonic() + wait_seconds
    while True:
        try:
            writer = await to_thread.run_sync(LexicalWriter(root, store_id).__enter__)
            break
        except DataDirectoryInUse:
            if time.monotonic() >= until:
                raise
        await sleep(_POLL_SECONDS)
    try:
        yield writer
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(writer.__exit__, None, None, None)


class Following:
    """Brings the keyword indexes under `root` to the catalog's state; used from one event loop.

    What was copied of each file stands beside the index, so that the next time only what differs is read. That
    account is written after the index's commit: a kill in between repeats work, and loses none.
    """

    def __init__(self, catalog: Catalog, root: Path) -> None:
        self._catalog = catalog
        self._root = root
        self._lexical = LexicalIndex(root)
        self._versions: dict[str, int] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def follow(self, store: Store, wait_seconds: float = WRITER_SECONDS) -> None:
        """Return when the store's keyword index is as the catalog had it at `store.version`, or later.

        Once for all who wait; one that leaves does not end it. An ingest on this machine keeps its index up to
        date itself: where it holds it for longer than `wait_seconds`, there is nothing to do. Raises
        CatalogUnavailable, and IndexMissing for a store that was adopted elsewhere.
        """
        name = store.index_name
        if store.adopted is not None:
            if self._lexical.stamp(name) is None:
                raise IndexMissing(
                    f"the store {store.name!r} was adopted on another machine, and has its keyword index there"
                )
            return
        while self._versions.get(name, -1) < store.version:
            task = self._running.get(name)
            if task is None:
                task = asyncio.ensure_future(self._catch_up(store, wait_seconds))
                self._running[name] = task
                task.add_done_callback(lambda done: self._ended(name, done))
            try:
                await asyncio.shield(task)
            except DataDirectoryInUse:
                return

    async def look(self) -> None:
        """Follow every store, one after the other; what fails is logged, for a search will say it too.

        What was copied of stores that are gone is dropped.
        """
        # Listed first: a store that is made meanwhile is not among them.
        copied = await to_thread.run_sync(self._copied)
        stores = await self._catalog.every_store()
        await self._drop_all(copied, known={store.id for store in stores})
        for store in stores:
            try:
                await self.follow(store, wait_seconds=0)
            except (RetrievalError, CatalogError) as error:
                log.debug("%s: %s", store.id, error)

    async def watch(self, every_seconds: float = LOOK_SECONDS) -> None:
        """Look again and again, until it is cancelled; what fails is logged."""
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.look()
            except Exception as error:  # whatever it is, the next look may succeed
                unexpected = not isinstance(error, CatalogError)
                log.warning("the stores could not be looked at: %s", error, exc_info=unexpected)

    async def close(self) -> None:
        """Stop what is under way."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, name: str, done: asyncio.Task[None]) -> None:
        del self._running[name]
        if not done.cancelled():
            done.exception()  # heard: whoever waited may have left

    async def _catch_up(self, store: Store, wait_seconds: float) -> None:
        name, account = store.index_name, self._account(store.index_name)
        await to_thread.run_sync(self._make_way, name, account)
        async with open_writer(self._root, name, wait_seconds) as writer:
            copied = await to_thread.run_sync(_read, account)
            known = copied or {}
            wanted = _shown(await self._catalog.memberships(store.id))
            changed = [file_id for file_id, state in wanted.items() if known.get(file_id) != state]
            gone = known.keys() - wanted.keys()
            for start in range(0, len(changed), FILES_AT_ONCE):
                some = changed[start : start + FILES_AT_ONCE]
                found = await self._catalog.shown_passages(store.id, some)
                await to_thread.run_sync(_replace, writer, some, found)
            if changed or gone:
                await to_thread.run_sync(_finish, writer, gone)
                log.info("%s: %d files copied, %d gone", name, len(changed), len(gone))
            if changed or gone or copied is None:
                await to_thread.run_sync(_write, account, wanted)
        self._versions[name] = store.version
        # The one before stays for searches that had chosen it.
        for old in range(store.generation - 1):
            await to_thread.run_sync(self._drop, index_name(store.id, old))

    def _make_way(self, name: str, account: Path) -> None:
        """Forget what was copied into an index that is not there, or cannot be read. Blocks."""
        try:
            if self._lexical.stamp(name) is not None:
                self._lexical.count(name)
                return
        except IndexMissing:
            drop(self._root, name)
        account.unlink(missing_ok=True)

    def _copied(self) -> list[str]:
        """The indexes that we have an account of. Others may belong to another catalog, and are not ours to drop."""
        return [path.stem for path in self._root.with_name("followed").glob("*.json")]

    async def _drop_all(self, names: Iterable[str], known: set[str]) -> None:
        for name in names:
            store_id = name.partition(".")[0]
            if store_id in known or not is_store_id(store_id) or name in self._running:
                continue
            await to_thread.run_sync(self._drop, name)
            self._versions.pop(name, None)
            log.info("%s: its store is gone, and so is the index", name)

    def _drop(self, name: str) -> None:
        drop(self._root, name)
        self._account(name).unlink(missing_ok=True)

    def _account(self, name: str) -> Path:
        return self._root.with_name("followed") / f"{name}.json"


def _shown(members: Iterable[Membership]) -> dict[str, list[object]]:
    """What tells one state of a file's passages from another, for each file that searches see."""
    return {
        member.file.id: [
            member.indexed_hash,
            member.chunks,
            member.file.filename,
            dict(member.chunking),
        ]
        for member in members
        if member.indexed_hash is not None
    }


def _replace(writer: LexicalWriter, file_ids: Iterable[str], passages: list[Passage]) -> None:
    by_file = {
        file_id: list(own) for file_id, own in groupby(passages, lambda passage: passage.file_id)
    }
    for file_id in file_ids:
        writer.replace_file(file_id, by_file.get(file_id, []))


def _finish(writer: LexicalWriter, gone: Iterable[str]) -> None:
    for file_id in gone:
        writer.delete_file(file_id)
    writer.commit()


def _read(account: Path) -> dict[str, list[object]] | None:
    """What the account says; None where there is none, or none that can be read."""
    try:
        found: dict[str, list[object]] = json.loads(account.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _write(account: Path, states: Mapping[str, list[object]]) -> None:
    account.parent.mkdir(parents=True, exist_ok=True)
    temporary = account.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(states))
    temporary.replace(account)

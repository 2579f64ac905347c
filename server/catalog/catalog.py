"""Stores, files and passages: what was acknowledged, in SQLite or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import sqlalchemy as sa
from anyio import CancelScope
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from retrieval.types import HASH_DIGITS, Passage
from server.catalog import rebuild, rows
from server.catalog.database import open_engine, reachable, try_claim
from server.catalog.errors import (
    AmbiguousStore,
    EmbedderConflict,
    FileNotFound,
    InvalidStoreName,
    StoreNotFound,
)
from server.catalog.reads import SharedReads
from server.catalog.records import (
    Adopted,
    FileCount,
    FileVersion,
    Membership,
    RebuiltFile,
    Store,
    StoreTotals,
    new_store_id,
)
from server.catalog.tables import files, memberships, passages, stores

#: `<model>@none` means "without retrieval", so no store may have the name.
RESERVED_NAMES = frozenset({"none"})
MAX_NAME_CHARS = 256


class Catalog:
    """One open catalog. Tasks may share it: each call is its own transaction on a pooled connection."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._named = SharedReads(self._stores_named)

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open the catalog at a SQLAlchemy URL and bring its tables up to date.

        Several processes may open it at once. Raises CatalogUnavailable.
        """
        return cls(await open_engine(url))

    async def close(self) -> None:
        with CancelScope(shield=True):
            await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that a cancelled caller still ends: it takes milliseconds, and holds the lock."""
        with CancelScope(shield=True):
            async with reachable(), self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement. Raises CatalogUnavailable."""
        async with reachable(), self._engine.connect() as connection:
            yield connection

    @property
    def shared(self) -> bool:
        """Whether other machines may use it too: their writes are then not in this one's keyword indexes."""
        return self._engine.dialect.name != "sqlite"

    @asynccontextmanager
    async def claim(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Hands out a try to become the only one that ingests, on all machines, until the block ends.

        The database frees it when the process dies. A catalog that is not shared needs none: the try succeeds.
        """

        async def granted() -> bool:
            return True

        if not self.shared:
            yield granted
            return
        async with reachable():
            connection = await self._engine.connect()
        # Without a transaction, which would be open for as long as the ingest takes.
        session = await connection.execution_options(isolation_level="AUTOCOMMIT")

        async def asked() -> bool:
            async with reachable():
                return await try_claim(session)

        try:
            yield asked
        finally:
            with CancelScope(shield=True):
                await session.invalidate()  # a pooled session would keep the right
                await session.close()

    # Stores

    async def create_store(
        self, tenant: str, name: str, metadata: Mapping[str, Any] | None = None
    ) -> Store:
        """A new store; names need not be unique. Raises InvalidStoreName."""
        _check_name(name)
        now = int(time.time())
        values: dict[str, Any] = {
            "id": new_store_id(),
            "tenant": tenant,
            "name": name,
            "metadata": dict(metadata or {}),
            "created_at": now,
            "last_active_at": now,
            "version": 0,
            "embedder": None,
            "dimension": None,
            "generation": 0,
            "adopted": None,
        }
        async with self._write() as connection:
            await connection.execute(stores.insert().values(values))
        return Store(**values)

    async def find_store(self, tenant: str, ref: str) -> Store:
        """The tenant's store with id or name `ref`, ids first.

        Callers that wait for the same store at once share one reading, begun after the last of them came.
        Raises StoreNotFound, or AmbiguousStore when several have that name.
        """
        found = await self._named.get((tenant, ref))
        for store in found:
            if store.id == ref:
                return store
        if not found:
            raise StoreNotFound(ref)
        if len(found) > 1:
            raise AmbiguousStore(ref, [store.id for store in found])
        return found[0]

    async def _stores_named(self, key: tuple[str, str]) -> list[Store]:
        """The tenant's stores with this id or name, oldest first."""
        tenant, ref = key
        mine = stores.c.tenant == tenant
        either = sa.or_(stores.c.id == ref, stores.c.name == ref)
        query = sa.select(stores).where(mine, either).order_by(stores.c.created_at, stores.c.id)
        async with self._read() as connection:
            return [rows.store(row) for row in await connection.execute(query)]

    async def list_stores(self, tenant: str) -> list[Store]:
        """The tenant's stores, oldest first."""
        query = (
            sa.select(stores)
            .where(stores.c.tenant == tenant)
            .order_by(stores.c.created_at, stores.c.id)
        )
        async with self._read() as connection:
            return [rows.store(row) for row in await connection.execute(query)]

    async def every_store(self) -> list[Store]:
        """The stores of all tenants, oldest first."""
        query = sa.select(stores).order_by(stores.c.created_at, stores.c.id)
        async with self._read() as connection:
            return [rows.store(row) for row in await connection.execute(query)]

    async def stores_of_other_format(self, index_format: int) -> set[str]:
        """Ids of stores with files that were cut in another INDEX_FORMAT."""
        made_in = memberships.c.chunking["format"].as_integer()
        query = (
            sa.select(memberships.c.store_id)
            .distinct()
            .where(memberships.c.status == "completed", made_in != index_format)
        )
        async with self._read() as connection:
            return set((await connection.execute(query)).scalars())

    async def store_totals(self, store_id: str) -> StoreTotals:
        """What the store's completed files add up to."""
        query = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(memberships.c.chunks), 0),
            sa.func.coalesce(sa.func.sum(memberships.c.usage_bytes), 0),
        ).where(memberships.c.store_id == store_id, memberships.c.status == "completed")
        async with self._read() as connection:
            count, chunks, usage = (await connection.execute(query)).one()
        return StoreTotals(files=count, passages=int(chunks), usage_bytes=int(usage))

    async def file_counts(self) -> list[FileCount]:
        """What the stores of all tenants hold, by status; an adopted or empty store has none."""
        query = sa.select(
            memberships.c.store_id,
            memberships.c.status,
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(memberships.c.chunks), 0),
        ).group_by(memberships.c.store_id, memberships.c.status)
        async with self._read() as connection:
            found = await connection.execute(query)
            return [
                FileCount(store_id, status, count, int(chunks))
                for store_id, status, count, chunks in found
            ]

    async def content_hashes(self) -> set[str]:
        """The keys of all bytes that a file of any tenant has."""
        async with self._read() as connection:
            return set((await connection.execute(sa.select(files.c.content_hash))).scalars())

    async def delete_store(self, store_id: str) -> None:
        """Forget the store and every file that is in no other store. Raises StoreNotFound."""
        async with self._write() as connection:
            ids = sa.select(memberships.c.file_id).where(memberships.c.store_id == store_id)
            held = list((await connection.execute(ids)).scalars())
            gone = await connection.execute(stores.delete().where(stores.c.id == store_id))
            if gone.rowcount == 0:
                raise StoreNotFound(store_id)
            for file_id in held:
                await connection.execute(rows.delete_if_unused(file_id))

    async def bind_embedder(self, store_id: str, embedder: str, dimension: int) -> Store:
        """Record which embedder makes the store's vectors, once.

        Raises StoreNotFound, or EmbedderConflict when another one was recorded.
        """
        free = sa.and_(stores.c.id == store_id, stores.c.embedder.is_(None))
        bind = stores.update().where(free).values(embedder=embedder, dimension=dimension)
        async with self._write() as connection:
            await connection.execute(bind)
            row = (await connection.execute(rows.select_store(store_id))).one_or_none()
        if row is None:
            raise StoreNotFound(store_id)
        store = rows.store(row)
        if (store.embedder, store.dimension) != (embedder, dimension):
            raise EmbedderConflict(
                store.name,
                f"{store.embedder!r} ({store.dimension} dimensions)",
                f"{embedder!r} ({dimension} dimensions)",
            )
        return store

    # The next generation of a store's index

    async def stage(self, store_id: str, staged: Sequence[Passage]) -> None:
        """Keep passages of an index that is being rebuilt; nobody reads them before `switch`."""
        async with self._write() as connection:
            await rebuild.stage(connection, store_id, staged)

    async def discard_staged(self, store_id: str) -> None:
        """Forget what an interrupted rebuild staged."""
        async with self._write() as connection:
            await rebuild.discard(connection, store_id)

    async def switch(
        self,
        store_id: str,
        generation: int,
        embedder: str,
        dimension: int,
        files: Sequence[RebuiltFile],
    ) -> None:
        """Make the rebuilt index the store's, with what was staged, at once. Raises StoreNotFound."""
        async with self._write() as connection:
            await rebuild.advance(connection, store_id, generation, embedder, dimension, None)
            await rebuild.unstage(connection, store_id, files)

    async def switch_adopted(
        self, store_id: str, generation: int, embedder: str, dimension: int, adopted: Adopted
    ) -> None:
        """Make an adopted store's newly read index the one that searches use. Raises StoreNotFound."""
        async with self._write() as connection:
            await rebuild.advance(connection, store_id, generation, embedder, dimension, adopted)

    async def passages_of(
        self, store_id: str, file_id: str, content_hash: str
    ) -> tuple[Passage, ...]:
        """The passages of one version of a file, in their order."""
        query = (
            sa.select(passages, files.c.filename)
            .join(files, files.c.id == passages.c.file_id)
            .where(
                passages.c.store_id == store_id,
                passages.c.file_id == file_id,
                passages.c.content_hash == content_hash,
            )
            .order_by(passages.c.chunk)
        )
        async with self._read() as connection:
            return tuple(rows.passage(row) for row in await connection.execute(query))

    async def shown_passages(self, store_id: str, file_ids: Sequence[str]) -> list[Passage]:
        """What searches see of these files: the passages of the content that was last indexed completely."""
        mine = sa.and_(
            memberships.c.store_id == passages.c.store_id,
            memberships.c.file_id == passages.c.file_id,
            memberships.c.indexed_hash == passages.c.content_hash,
        )
        query = (
            sa.select(passages, files.c.filename)
            .join(files, files.c.id == passages.c.file_id)
            .join(memberships, mine)
            .where(passages.c.store_id == store_id, passages.c.file_id.in_(file_ids))
            .order_by(passages.c.file_id, passages.c.chunk)
        )
        async with self._read() as connection:
            return [rows.passage(row) for row in await connection.execute(query)]

    async def bump_version(self, store_id: str) -> int:
        """Say that the store's index has changed; returns the new version. Raises StoreNotFound."""
        async with self._write() as connection:
            return await rows.bump(connection, store_id)

    # Files in stores

    async def memberships(self, store_id: str) -> list[Membership]:
        """The files in a store, in the order in which they came."""
        query = (
            rows.membership_query()
            .where(memberships.c.store_id == store_id)
            .order_by(memberships.c.created_at, memberships.c.file_id)
        )
        async with self._read() as connection:
            return [rows.membership(row) for row in await connection.execute(query)]

    async def membership(self, store_id: str, file_id: str) -> Membership:
        """One file in a store. Raises FileNotFound."""
        query = rows.membership_query().where(
            memberships.c.store_id == store_id, memberships.c.file_id == file_id
        )
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise FileNotFound(file_id)
        return rows.membership(row)

    async def begin(self, store_id: str, tenant: str, versions: Sequence[FileVersion]) -> None:
        """Accept file versions into a store: `in_progress`, their passages readable at once.

        The passages of a file's earlier version stay until `complete`, since it is still what
        searches see. The bytes must be in the blob store already. Raises StoreNotFound.
        """
        now = int(time.time())
        async with self._write() as connection:
            if (await connection.execute(rows.select_store(store_id))).one_or_none() is None:
                raise StoreNotFound(store_id)
            for version in versions:
                await rows.put_version(connection, store_id, tenant, version, now)

    async def complete(self, store_id: str, versions: Sequence[FileVersion]) -> int:
        """Mark versions as what searches see, drop the passages of earlier ones, move the version.

        Returns the store's new version.
        """
        async with self._write() as connection:
            for version in versions:
                await rows.complete_version(connection, store_id, version)
            return await rows.bump(connection, store_id)

    async def reopen(self, store_id: str, file_ids: Sequence[str]) -> None:
        """Mark files `in_progress` before their index rows are touched, so that an interruption is noticed."""
        mine = sa.and_(memberships.c.store_id == store_id, memberships.c.file_id.in_(file_ids))
        async with self._write() as connection:
            await connection.execute(memberships.update().where(mine).values(status="in_progress"))

    async def remove(self, store_id: str, file_ids: Sequence[str]) -> int:
        """Take files out of a store, and forget those that are in no other; returns the store's new version."""
        mine = sa.and_(memberships.c.store_id == store_id, memberships.c.file_id.in_(file_ids))
        async with self._write() as connection:
            await connection.execute(memberships.delete().where(mine))
            for file_id in file_ids:
                await connection.execute(rows.delete_if_unused(file_id))
            return await rows.bump(connection, store_id)

    async def passage(
        self, file_id: str, hash_prefix: str, chunk: int, tenant: str
    ) -> Passage | None:
        """The passage that a citation leads to; None when it is gone or another tenant's.

        `hash_prefix` has at least HASH_DIGITS digits of the content's hash.
        """
        if len(hash_prefix) < HASH_DIGITS:
            return None
        same_hash = sa.func.substr(passages.c.content_hash, 1, len(hash_prefix)) == hash_prefix
        query = (
            sa.select(passages, files.c.filename)
            .join(files, files.c.id == passages.c.file_id)
            .where(
                passages.c.file_id == file_id,
                passages.c.chunk == chunk,
                files.c.tenant == tenant,
                same_hash,
            )
            # A file in several stores has the same passages unless they were cut differently.
            .order_by(passages.c.store_id)
            .limit(1)
        )
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else rows.passage(row)


def _check_name(name: str) -> None:
    if name.strip().lower() in RESERVED_NAMES:
        raise InvalidStoreName(name, "the name is reserved (`<model>@none` turns retrieval off)")
    if len(name) > MAX_NAME_CHARS:
        raise InvalidStoreName(name[:40] + "…", f"it is longer than {MAX_NAME_CHARS} characters")
    if any(not character.isprintable() for character in name):
        raise InvalidStoreName(name, "it holds characters that cannot be printed")

"""The statements behind a store's next generation: staged beside the old one, shown in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from retrieval.types import Passage
from server.catalog import rows
from server.catalog.errors import StoreNotFound
from server.catalog.records import Adopted, RebuiltFile
from server.catalog.tables import memberships, passages, staged_passages, stores


async def stage(connection: AsyncConnection, store_id: str, staged: Sequence[Passage]) -> None:
    values = [rows.passage_values(store_id, passage) for passage in staged]
    if values:
        await connection.execute(staged_passages.insert(), values)


async def discard(connection: AsyncConnection, store_id: str) -> None:
    await connection.execute(staged_passages.delete().where(staged_passages.c.store_id == store_id))


async def unstage(connection: AsyncConnection, store_id: str, files: Sequence[RebuiltFile]) -> None:
    """Make the staged passages the store's, and its files what they were rebuilt as."""
    await connection.execute(passages.delete().where(passages.c.store_id == store_id))
    mine = sa.select(staged_passages).where(staged_passages.c.store_id == store_id)
    names = [column.name for column in staged_passages.c]
    await connection.execute(passages.insert().from_select(names, mine))
    await discard(connection, store_id)
    for file in files:
        row = sa.and_(memberships.c.store_id == store_id, memberships.c.file_id == file.file_id)
        values: dict[str, Any] = {
            "status": "completed",
            "error_code": None,
            "error_message": None,
            "indexed_hash": file.content_hash,
            "chunks": file.chunks,
            "usage_bytes": file.usage_bytes,
            "chunking": dict(file.chunking),
        }
        await connection.execute(memberships.update().where(row).values(values))


async def advance(
    connection: AsyncConnection,
    store_id: str,
    generation: int,
    embedder: str,
    dimension: int,
    adopted: Adopted | None,
) -> None:
    """Point the store at another generation of its index. Raises StoreNotFound."""
    changed = await connection.execute(
        stores.update()
        .where(stores.c.id == store_id)
        .values(
            generation=generation,
            embedder=embedder,
            dimension=dimension,
            adopted=None if adopted is None else asdict(adopted),
        )
    )
    if changed.rowcount == 0:
        raise StoreNotFound(store_id)
    await rows.bump(connection, store_id)

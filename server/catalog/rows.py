"""Between the catalog's rows and its records: the statements that more than one call needs."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from retrieval.types import Passage
from server.catalog.errors import FileNotFound, StoreNotFound
from server.catalog.records import Adopted, File, FileVersion, Membership, Store
from server.catalog.tables import files, memberships, passages, stores


def store(row: sa.Row[Any]) -> Store:
    values = dict(row._mapping)
    if values["adopted"] is not None:
        values["adopted"] = Adopted(**values["adopted"])
    return Store(**values)


def membership(row: sa.Row[Any]) -> Membership:
    values = dict(row._mapping)
    kept = {name.removeprefix("file_"): values.pop(name) for name in _FILE_LABELS}
    return Membership(**values, file=File(**kept))


def passage(row: sa.Row[Any]) -> Passage:
    values = dict(row._mapping)
    del values["store_id"]
    values["headings"] = tuple(values["headings"])
    return Passage(**values)


_FILE_LABELS = tuple(f"file_{column.name}" for column in files.c)


def select_store(store_id: str) -> sa.Select[Any]:
    return sa.select(stores).where(stores.c.id == store_id)


def membership_query() -> sa.Select[Any]:
    """Memberships with their files' columns as `file_…` (so `file_id` is the file's id once)."""
    own = [column for column in memberships.c if column.name != "file_id"]
    theirs = [column.label(f"file_{column.name}") for column in files.c]
    return sa.select(*own, *theirs).join(files, files.c.id == memberships.c.file_id)


def delete_if_unused(file_id: str) -> sa.Delete:
    used = sa.exists().where(memberships.c.file_id == files.c.id)
    return files.delete().where(files.c.id == file_id, ~used)


async def bump(connection: AsyncConnection, store_id: str) -> int:
    # Strictly later, even for two writes within a second: clients compare the two times.
    now = int(time.time())
    later = sa.case(
        (stores.c.last_active_at >= now, stores.c.last_active_at + 1),
        else_=now,
    )
    update = (
        stores.update()
        .where(stores.c.id == store_id)
        .values(version=stores.c.version + 1, last_active_at=later)
        .returning(stores.c.version)
    )
    version: int | None = (await connection.execute(update)).scalar_one_or_none()
    if version is None:
        raise StoreNotFound(store_id)
    return version


async def put_version(
    connection: AsyncConnection, store_id: str, tenant: str, version: FileVersion, now: int
) -> None:
    """Insert or update the file, its membership (`in_progress`) and this version's passages."""
    content = {
        "filename": version.filename,
        "bytes": version.bytes,
        "content_hash": version.content_hash,
    }
    known = files.update().where(files.c.id == version.file_id, files.c.tenant == tenant)
    if (await connection.execute(known.values(content))).rowcount == 0:
        new = {"id": version.file_id, "tenant": tenant, "purpose": "assistants", "created_at": now}
        await connection.execute(files.insert().values(new | content))
    state = {"status": "in_progress", "error_code": None, "error_message": None}
    mine = sa.and_(memberships.c.store_id == store_id, memberships.c.file_id == version.file_id)
    if (await connection.execute(memberships.update().where(mine).values(state))).rowcount == 0:
        await connection.execute(
            memberships.insert().values(
                store_id=store_id,
                file_id=version.file_id,
                source=version.source,
                chunks=0,
                usage_bytes=0,
                attributes={},
                chunking=dict(version.chunking),
                created_at=now,
                **state,
            )
        )
    same = sa.and_(_passages_of(store_id, version.file_id), _same_content(version))
    await connection.execute(passages.delete().where(same))
    if version.passages:
        await connection.execute(
            passages.insert(), [passage_values(store_id, each) for each in version.passages]
        )


async def complete_version(
    connection: AsyncConnection, store_id: str, version: FileVersion
) -> None:
    mine = sa.and_(memberships.c.store_id == store_id, memberships.c.file_id == version.file_id)
    done = await connection.execute(
        memberships.update()
        .where(mine)
        .values(
            status="completed",
            indexed_hash=version.content_hash,
            chunks=len(version.passages),
            usage_bytes=version.usage_bytes,
            chunking=dict(version.chunking),
        )
    )
    if done.rowcount == 0:
        raise FileNotFound(version.file_id)
    stale = sa.and_(_passages_of(store_id, version.file_id), ~_same_content(version))
    await connection.execute(passages.delete().where(stale))


def _passages_of(store_id: str, file_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(passages.c.store_id == store_id, passages.c.file_id == file_id)


def _same_content(version: FileVersion) -> sa.ColumnElement[bool]:
    return passages.c.content_hash == version.content_hash


def passage_values(store_id: str, passage: Passage) -> dict[str, Any]:
    return {
        "store_id": store_id,
        "file_id": passage.file_id,
        "content_hash": passage.content_hash,
        "chunk": passage.chunk,
        "text": passage.text,
        "title": passage.title,
        "headings": list(passage.headings),
        "page": passage.page,
    }

"""Opens the catalog's database: SQLite's settings, and migrations that two processes may start at once."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from anyio import to_thread
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.catalog.errors import CatalogUnavailable

#: The newest migration; a test holds it equal to alembic's head. Kept here so that opening an
#: up-to-date catalog does not import alembic.
HEAD = "0002"

#: Connections that are kept; a caller that finds none free waits for one.
CONNECTIONS = 15
#: How long a writer waits for another process's transaction; ours last milliseconds.
_BUSY_TIMEOUT_MS = 30_000

#: An arbitrary constant: PostgreSQL's advisory lock under which one process migrates.
_ADVISORY_LOCK = 0x67726F756E64


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite catalog at `path`."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


async def open_engine(url: str) -> AsyncEngine:
    """An engine on a database whose tables are up to date.

    Raises CatalogUnavailable when the URL or the database cannot be used.
    """
    try:
        parsed = make_url(url)
        engine = _sqlite(parsed) if _is_sqlite(parsed) else create_async_engine(parsed)
    except (ArgumentError, ImportError, OSError) as error:
        raise CatalogUnavailable(f"catalog_url is not usable: {error}") from error
    try:
        await _migrate(engine, parsed)
    except (SQLAlchemyError, OSError) as error:
        await engine.dispose()
        cause = getattr(error, "orig", None) or error
        shown = parsed.render_as_string(hide_password=True)
        raise CatalogUnavailable(f"the catalog at {shown} cannot be opened: {cause}") from error
    except BaseException:
        await engine.dispose()
        raise
    return engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sqlite(url: URL) -> AsyncEngine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # We begin transactions ourselves (below): the driver must not.
    # A connection is a thread and four pragmas: kept, not made anew for each request beyond the fifth.
    engine = create_async_engine(
        url, connect_args={"isolation_level": None}, pool_size=CONNECTIONS, max_overflow=0
    )
    sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # FULL: in WAL mode anything less may lose the last commits with the machine's power.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # Reads are single statements and need no transaction. A writer takes the lock at once: a
    # transaction that turns from reading to writing would fail without waiting when another has
    # written in between.
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


async def _migrate(engine: AsyncEngine, url: URL) -> None:
    if not (_is_sqlite(url) and url.database and url.database != ":memory:"):
        await _upgrade(engine)
        return
    # Around the first connection too: two processes that switch a new file to WAL at the same
    # moment get "database is locked" without SQLite waiting.
    lock = await to_thread.run_sync(_locked, f"{url.database}.lock")
    try:
        await _upgrade(engine)
    finally:
        os.close(lock)


def _locked(path: str) -> int:
    """A descriptor that holds the exclusive lock on `path` until it is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


async def _upgrade(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        if await connection.run_sync(_revision) == HEAD:
            return
    async with engine.execution_options(writes=True).begin() as connection:
        await _advisory_lock(connection)
        await connection.run_sync(_run_alembic)


async def _advisory_lock(connection: AsyncConnection) -> None:
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar_one_or_none()
    return revision


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise CatalogUnavailable(
            f"the catalog was written by another version of groundwire ({error}); "
            "use that version, or a newer one"
        ) from error

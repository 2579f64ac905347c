"""Opens the catalog's database: each kind's settings, and migrations that two processes may start at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from anyio import to_thread
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
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
#: Another: the one under which one process at a time ingests.
_INGEST_LOCK = _ADVISORY_LOCK + 1

#: How long PostgreSQL may take to be connected to, and to answer one statement: requests wait for it.
_CONNECT_SECONDS = 5.0
_STATEMENT_SECONDS = 60.0

#: SQLSTATEs, or their first digits, of a server that serves nobody, or not us: connection exceptions, too many
#: connections, a server that starts or stops, credentials that it does not take, and a standby asked to write.
_UNAVAILABLE = ("08", "53300", "57P", "28", "25006")

#: What hosters' URLs say to libpq, and asyncpg has no word for: dropped. Certificates and `options` (the endpoint, at
#: some hosters) are not: without them one would trust or reach something else than was asked for.
_FOR_LIBPQ = (
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite catalog at `path`."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


async def open_engine(url: str) -> AsyncEngine:
    """An engine on a database whose tables are up to date.

    Raises CatalogUnavailable when the URL or the database cannot be used.
    """
    try:
        parsed = _with_driver(make_url(url))
        engine = _sqlite(parsed) if _is_sqlite(parsed) else _postgres(parsed)
    except ModuleNotFoundError as error:
        raise CatalogUnavailable(
            f"catalog_url is not usable: {error}; for PostgreSQL install groundwire[postgres]"
        ) from error
    except (ArgumentError, ImportError, OSError) as error:
        raise CatalogUnavailable(f"catalog_url is not usable: {error}") from error
    try:
        await _migrate(engine, parsed)
    except (SQLAlchemyError, OSError) as error:
        await engine.dispose()
        cause = getattr(error, "orig", None) or error
        shown = parsed.render_as_string(hide_password=True)
        raise CatalogUnavailable(f"the catalog at {shown} cannot be opened: {cause}") from error
    except TypeError as error:
        # A parameter of the URL that the driver does not know; it says which.
        await engine.dispose()
        raise CatalogUnavailable(f"catalog_url is not usable: {error}") from error
    except BaseException:
        await engine.dispose()
        raise
    return engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _with_driver(url: URL) -> URL:
    """The URL as hosters give it (`postgres://…?sslmode=require`), in the words of the driver that we use.

    Raises ArgumentError for another database or driver.
    """
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+asyncpg")
    if url.drivername == "postgresql+asyncpg":
        mode = url.query.get("sslmode")
        url = url.difference_update_query(["sslmode", *_FOR_LIBPQ])
        if mode is not None:
            url = url.update_query_dict({"ssl": mode})
    if url.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise ArgumentError(
            f"{url.drivername!r} is neither sqlite+aiosqlite nor postgresql+asyncpg"
        )
    return url


def _postgres(url: URL) -> AsyncEngine:
    # Pinged before use: after a restart or a failover of the server no request meets a connection that is dead.
    return create_async_engine(
        url,
        connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _STATEMENT_SECONDS},
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
    )


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Raises CatalogUnavailable where the block finds that the database does not answer."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated:
            raise CatalogUnavailable("the catalog's database has closed the connection") from error
        # Clients read the message: PostgreSQL's own names the user.
        state = getattr(error.orig, "sqlstate", None) or ""
        if not state.startswith(_UNAVAILABLE):
            raise
        raise CatalogUnavailable(f"the catalog's database refused us (SQLSTATE {state})") from error
    except (
        PoolTimeout,
        OSError,
    ) as error:  # a connection that is refused is not SQLAlchemy's to translate
        raise CatalogUnavailable(f"the catalog's database does not answer: {error}") from error


async def try_claim(connection: AsyncConnection) -> bool:
    """Whether this connection's session now holds the right to ingest; it does until it is closed."""
    claim = sa.select(sa.func.pg_try_advisory_lock(_INGEST_LOCK))
    return bool((await connection.execute(claim)).scalar_one())


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

"""Opening: migrations, several processes at once, and what survives a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

import server.catalog
from server.catalog import Catalog, CatalogUnavailable, database, sqlite_url
from server.catalog.tables import metadata
from tests.debian.servers import free_port

pytestmark = pytest.mark.anyio

#: What a client of PostgreSQL asks first (protocol 3.0, "SSLRequest").
_SSL_REQUEST = struct.pack("!I", 80877103)

OPEN_AND_CREATE = """
import asyncio, sys
from server.catalog import Catalog
async def main():
    async with await Catalog.open(sys.argv[1]) as catalog:
        store = await catalog.create_store("local", sys.argv[2])
        print(store.id, flush=True)
        if sys.argv[3:] == ["hang"]:
            await asyncio.Event().wait()
asyncio.run(main())
"""


def start(url: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN_AND_CREATE, url, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_migrations_make_the_tables_that_the_code_declares(catalog: Catalog) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with catalog._engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_head_is_the_newest_migration() -> None:
    config = Config()
    package = Path(server.catalog.__file__).parent
    config.set_main_option("script_location", str(package / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [database.HEAD]


async def test_processes_that_open_a_new_catalog_at_once(url: str) -> None:
    processes = [start(url, f"store {number}") for number in range(4)]
    ids = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        ids.append(out.strip())
    async with await Catalog.open(url) as catalog:
        assert {store.id for store in await catalog.list_stores("local")} == set(ids)


async def test_what_was_acknowledged_survives_a_kill(url: str) -> None:
    process = start(url, "kept", "hang")
    assert process.stdout is not None
    store_id = process.stdout.readline().strip()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    async with await Catalog.open(url) as catalog:
        assert (await catalog.find_store("local", "kept")).id == store_id


async def test_sqlite_is_set_for_durability(sqlite: str) -> None:
    async with await Catalog.open(sqlite) as catalog, catalog._engine.connect() as connection:
        values = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_a_failed_write_is_rolled_back(catalog: Catalog) -> None:
    async def half() -> None:
        async with catalog._write() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO stores VALUES ('vs_1', 't', 'n', '{}', 1, 1, 0, NULL, NULL, 0, NULL)"
            )
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await half()
    assert await catalog.list_stores("t") == []


async def test_a_catalog_from_the_future_is_refused(url: str) -> None:
    async with await Catalog.open(url) as catalog, catalog._write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CatalogUnavailable, match="another version of groundwire"):
        await Catalog.open(url)


async def test_a_file_that_is_no_database(sqlite: str, tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(CatalogUnavailable, match="not a database"):
        await Catalog.open(sqlite)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgres://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql+asyncpg://h/d?ssl=prefer", "postgresql+asyncpg://h/d?ssl=prefer"),
        ("postgresql+asyncpg://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        (
            "postgres://h/d?sslmode=verify-full&channel_binding=require&connect_timeout=9",
            "postgresql+asyncpg://h/d?ssl=verify-full",
        ),
    ],
)
async def test_postgresql_s_url_as_hosters_give_it(given: str, read: str) -> None:
    url = database._with_driver(make_url(given))
    assert url.render_as_string(hide_password=False) == read


@pytest.mark.parametrize("parameter", ["sslrootcert=/ca.pem", "options=endpoint%3Dx"])
async def test_what_the_driver_does_not_know_and_must_not_be_dropped(parameter: str) -> None:
    with pytest.raises(CatalogUnavailable, match=parameter.partition("=")[0]) as raised:
        await Catalog.open(f"postgres://me:s3cret@127.0.0.1:{free_port()}/d?{parameter}")
    assert "s3cret" not in str(raised.value)


async def test_a_database_that_is_away() -> None:
    with pytest.raises(CatalogUnavailable, match="cannot be opened") as raised:
        await Catalog.open(f"postgresql://me:s3cret@127.0.0.1:{free_port()}/d")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("state", "unavailable"),
    [("57P01", True), ("57P03", True), ("08006", True), ("28P01", True), ("42501", False)],
)
async def test_a_postgresql_that_refuses_connections(state: str, unavailable: bool) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        if await reader.readexactly(size - 4) == _SSL_REQUEST:
            writer.write(b"N")
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            await reader.readexactly(size - 4)
        fields = b"SFATAL\0VFATAL\0C" + state.encode() + b"\0Mnot you, u\0\0"
        writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = make_url(f"postgresql+asyncpg://u:p@127.0.0.1:{port}/d")
        async with Catalog(database._postgres(url)) as catalog:
            with pytest.raises(CatalogUnavailable if unavailable else DBAPIError) as raised:
                await catalog.find_store("local", "docs")
    if unavailable:
        assert state in str(raised.value)
        assert "not you" not in str(raised.value)


async def test_who_uses_sqlite_ingests_alone_anyway(sqlite: str) -> None:
    async with await Catalog.open(sqlite) as catalog, catalog.claim() as try_claim:
        assert not catalog.shared
        assert await try_claim()


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "postgresql+psycopg2://h/d",
        "mongodb://x/y",
        "sqlite+aiosqlite:////proc/nope/c.db",
    ],
)
async def test_an_unusable_url(bad: str) -> None:
    with pytest.raises(CatalogUnavailable):
        await Catalog.open(bad)


async def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    path = tmp_path / "50% off? #1 & more" / "catalog.db"
    async with await Catalog.open(sqlite_url(path)) as catalog:
        await catalog.create_store("local", "docs")
    assert path.exists()

"""What only a database that machines share has: outages, and one ingest at a time on all of them."""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from server.catalog import Catalog, CatalogUnavailable
from server.ingestion import IngestBusy
from server.ingestion.lock import catalog_claim
from tests.debian.servers import Postgres

pytestmark = [pytest.mark.anyio, pytest.mark.debian]

CLAIM = """
import asyncio, sys
from server.catalog import Catalog
async def main():
    async with await Catalog.open(sys.argv[1]) as catalog, catalog.claim() as try_claim:
        print(await try_claim(), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def holding(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CLAIM, url], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def shared(postgres: Postgres) -> str:
    return postgres.new_database()


async def test_a_restart_of_the_database_fails_nothing_afterwards(
    postgres: Postgres, shared: str
) -> None:
    async with await Catalog.open(shared) as catalog:
        assert catalog.shared
        store = await catalog.create_store("local", "docs")
        await anyio.to_thread.run_sync(postgres.stop)
        for _ in range(2):
            with pytest.raises(CatalogUnavailable):
                await catalog.find_store("local", "docs")
            with pytest.raises(CatalogUnavailable):
                await catalog.bump_version(store.id)
        await anyio.to_thread.run_sync(postgres.start)
        assert await catalog.find_store("local", "docs") == store
        assert await catalog.bump_version(store.id) == 1


@pytest.mark.parametrize("wrong", ["absent", "d0?ssl=require"])
async def test_a_database_that_does_not_let_us_in(postgres: Postgres, wrong: str) -> None:
    url = postgres.new_database().rpartition("/")[0]
    with pytest.raises(CatalogUnavailable, match="cannot be opened"):
        await Catalog.open(f"{url}/{wrong}")


async def test_a_restart_that_nobody_saw(postgres: Postgres, shared: str) -> None:
    async with await Catalog.open(shared) as catalog:
        store = await catalog.create_store("local", "docs")
        await anyio.to_thread.run_sync(postgres.stop)
        await anyio.to_thread.run_sync(postgres.start)
        assert await catalog.find_store("local", "docs") == store


@pytest.mark.parametrize(
    ("refuse", "state", "admit"),
    [("CONNECTION LIMIT 0", "53300", "CONNECTION LIMIT -1"), ("NOLOGIN", "28000", "LOGIN")],
)
async def test_a_database_that_lets_us_in_no_more(
    postgres: Postgres, shared: str, refuse: str, state: str, admit: str
) -> None:
    role, name = f"user{state}", shared.rpartition("/")[2]
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    postgres.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    async with await Catalog.open(shared.replace("postgres@", f"{role}@")) as catalog:
        store = await catalog.create_store("local", "docs")
        postgres.execute(f"ALTER ROLE {role} {refuse}")
        postgres.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        )
        with pytest.raises(CatalogUnavailable, match=f"SQLSTATE {state}"):
            await catalog.find_store("local", "docs")
        with pytest.raises(CatalogUnavailable, match=f"SQLSTATE {state}"):
            await catalog.bump_version(store.id)
        postgres.execute(f"ALTER ROLE {role} {admit}")
        assert await catalog.find_store("local", "docs") == store


async def test_a_standby_is_read_and_not_written(postgres: Postgres, shared: str) -> None:
    """What a failover leaves behind for a while: the address of a database that takes no writes."""
    name = shared.rpartition("/")[2]
    async with await Catalog.open(shared) as catalog:
        store = await catalog.create_store("local", "docs")
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgres.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        with pytest.raises(CatalogUnavailable, match="SQLSTATE 25006"):
            await catalog.bump_version(store.id)
        assert await catalog.find_store("local", "docs") == store


async def test_one_ingests_at_a_time(shared: str) -> None:
    heard: list[str] = []
    async with await Catalog.open(shared) as one, await Catalog.open(shared) as other:
        async with catalog_claim(one, 1, heard.append):
            with pytest.raises(IngestBusy, match="another machine"):
                async with catalog_claim(other, 0.2, heard.append):
                    pass
            assert heard == ["on another machine"]
        async with catalog_claim(other, 5, heard.append):
            assert heard == ["on another machine"]


async def test_a_dead_holder_lets_go(shared: str) -> None:
    with holding(shared) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        async with await Catalog.open(shared) as catalog, catalog.claim() as try_claim:
            assert not await try_claim()
            holder.kill()
            with anyio.fail_after(30):
                while not await try_claim():  # noqa: ASYNC110 - the database tells nobody
                    await anyio.sleep(0.01)

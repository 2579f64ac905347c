"""Own the Chroma, join another process's, or use one by URL."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from retrieval.errors import DataDirectoryInUse, StoreUnavailable
from retrieval.search import connect
from retrieval.search.child import free_port
from retrieval.search.lease import ENDPOINT_NAME, Lease
from tests.retrieval.search.search_support import chroma_run, eventually, row, vector

pytestmark = pytest.mark.anyio

JOINER = """
import asyncio, pathlib, sys
import numpy as np
from retrieval.search import VectorRow, connect
async def main():
    async with connect(pathlib.Path(sys.argv[1])) as connection:
        row = VectorRow("f/aaaaaaaaaaaaaaaa/1", "f", "a" * 64, np.ones(2, dtype=np.float32))
        await connection.store.upsert("vs_1", [row])
        print(connection.owned, await connection.store.count("vs_1"))
asyncio.run(main())
"""


async def test_rows_survive_a_clean_restart(tmp_path: Path) -> None:
    async with connect(tmp_path) as connection:
        assert connection.owned
        assert connection.restarts == 0
        await connection.store.upsert("vs_1", [row(0, [1, 0])])
    async with connect(tmp_path) as connection:
        assert await connection.store.count("vs_1") == 1


async def test_a_second_process_joins_and_its_rows_are_seen(tmp_path: Path) -> None:
    async with connect(tmp_path) as owner:
        await owner.store.upsert("vs_1", [row(0, [1, 0])])
        joiner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", JOINER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(joiner.communicate(), 60)
        assert said.decode().split() == ["False", "2"]
        assert len(await owner.store.query("vs_1", vector(1, 1), 5)) == 2


async def test_two_that_start_at_once_share_one_chroma(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        opened = await asyncio.gather(
            *(stack.enter_async_context(connect(tmp_path)) for _ in range(2))
        )
        assert sorted(connection.owned for connection in opened) == [False, True]
        await opened[0].store.upsert("vs_1", [row(0, [1, 0])])
        assert await opened[1].store.count("vs_1") == 1


async def test_a_joiner_is_told_that_the_owner_left_and_takes_over(tmp_path: Path) -> None:
    async with AsyncExitStack() as owners:
        owner = await owners.enter_async_context(connect(tmp_path))
        await owner.store.upsert("vs_1", [row(0, [1, 0])])
        async with connect(tmp_path) as joined:
            assert not joined.owned
            assert await joined.store.count("vs_1") == 1
            await owners.aclose()
            with pytest.raises(StoreUnavailable, match="another groundwire process"):
                await joined.store.count("vs_1")
            await eventually(lambda: joined.owned)
            assert await joined.store.count("vs_1") == 1
    Lease.take(tmp_path).release()


async def test_a_lock_without_a_chroma_behind_it_is_respected(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path)
    with pytest.raises(DataDirectoryInUse, match=r"in use by process \d+, which gives no access"):
        async with connect(tmp_path, wait_seconds=0):
            pass
    lease.release()


async def test_an_endpoint_file_that_names_a_stranger_is_not_believed(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "foreign") as foreign:
        lease = Lease.take(tmp_path)
        lie = {"port": foreign.port, "token": "t", "pid": 1}
        (tmp_path / ENDPOINT_NAME).write_text(json.dumps(lie))
        with pytest.raises(DataDirectoryInUse):
            async with connect(tmp_path, wait_seconds=0):
                pass
        lease.release()


async def test_a_broken_endpoint_file_of_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ENDPOINT_NAME).write_text("{")
    async with connect(tmp_path) as connection:
        assert connection.owned


async def test_by_url(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "server") as server:
        async with connect(tmp_path / "data", server.url) as connection:
            assert not connection.owned
            await connection.store.upsert("vs_1", [row(0, [1, 0])])
            assert await connection.store.count("vs_1") == 1
        assert not (tmp_path / "data").exists()


async def test_by_url_with_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        async with connect(tmp_path, f"http://127.0.0.1:{free_port()}"):
            pass

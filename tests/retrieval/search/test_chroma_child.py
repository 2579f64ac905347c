"""The supervised child: it comes back, it never outlives us, and there is one per directory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from retrieval.errors import DataDirectoryInUse, StoreUnavailable
from retrieval.search import ChromaChild, ChromaStore
from retrieval.search.child import LAUNCHER, free_port, serves_directory
from retrieval.search.lease import Lease, Published
from tests.retrieval.search.search_support import (
    alive,
    child_pids,
    chroma_run,
    eventually,
    open_files,
    row,
    unread_bytes,
    vector,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; PDEATHSIG is Linux's"),
]

PARENT = """
import asyncio, pathlib, sys
from retrieval.search import ChromaChild
async def main():
    async with ChromaChild(pathlib.Path(sys.argv[1])) as child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_kill_9_of_the_child_brings_it_back_with_its_rows(tmp_path: Path) -> None:
    restarted = asyncio.Event()
    async with ChromaChild(tmp_path, on_restart=restarted.set) as child:
        store = ChromaStore(lambda: child.endpoint)
        await store.upsert("vs_1", [row(i, [1.0, i]) for i in range(50)])
        first, endpoint = child.pid, child.endpoint
        assert first is not None
        with child.log_path.open("a") as log:
            log.write("its last words\n")
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(30):
            await restarted.wait()
        assert child.restarts == 1
        assert "its last words" in child.died_log_path.read_text()
        assert "its last words" not in child.log_path.read_text()
        assert child.pid not in (first, None)
        assert child.endpoint == endpoint  # the same port: processes that joined go on
        assert await store.count("vs_1") == 50
        assert (await store.query("vs_1", vector(1, 7), 1))[0].passage_id.endswith("/7")
        published = Published.read(tmp_path)
        assert published is not None
        assert published.pid == child.pid
        await store.close()


async def test_a_request_in_flight_fails_when_the_child_dies(tmp_path: Path) -> None:
    async with ChromaChild(tmp_path) as child:
        store = ChromaStore(lambda: child.endpoint)
        await store.upsert("vs_1", [row(0, [0.1] * 384)])
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        request = asyncio.create_task(store.query("vs_1", vector(*[0.1] * 384), 1))
        await eventually(lambda: unread_bytes(child.endpoint.port) > 1000)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await request
        await store.close()


async def test_a_child_that_moved_is_followed(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "foreign") as foreign:
        async with ChromaChild(tmp_path / "data") as child:
            store = ChromaStore(lambda: child.endpoint)
            await store.upsert("vs_1", [row(0, [1, 0])])
            before = child.endpoint
            child._last_port = foreign.port  # someone took the port while the child was down
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            await eventually(lambda: child.restarts == 1)
            assert child.endpoint not in (before, foreign)
            assert await store.count("vs_1") == 1
            await store.close()


async def test_a_port_that_a_stranger_holds_is_passed_over(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "foreign") as foreign:
        ports = iter([foreign.port, free_port()])
        async with ChromaChild(tmp_path / "data", pick_port=lambda: next(ports)) as child:
            assert child.endpoint.port != foreign.port
            store = ChromaStore(child.endpoint)
            await store.heartbeat()
            await store.close()


async def test_a_strangers_chroma_is_told_apart_and_left_clean(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "foreign") as foreign:
        async with ChromaChild(tmp_path / "data") as child:
            directory = tmp_path / "data" / "chroma"
            assert await serves_directory(child.endpoint, directory, "t1")
            assert not await serves_directory(foreign, directory, "t2")
            for endpoint, token in ((child.endpoint, "t1"), (foreign, "t2")):
                store = ChromaStore(endpoint)
                assert await store.has_token(token) is (endpoint == child.endpoint)
                await store.close()


async def test_no_port_at_all_is_an_error_that_names_the_log(tmp_path: Path) -> None:
    with chroma_run(tmp_path / "foreign") as foreign:
        before = child_pids()
        with pytest.raises(StoreUnavailable, match=r"answers on port|not available"):
            async with ChromaChild(tmp_path / "data", pick_port=lambda: foreign.port):
                pass
        assert child_pids() == before
        Lease.take(tmp_path / "data").release()


async def test_closing_leaves_no_process_and_a_free_lock(tmp_path: Path) -> None:
    before = child_pids()
    async with ChromaChild(tmp_path) as child:
        pid = child.pid
        assert pid is not None
        assert child_pids() - before == {pid}
        assert os.getsid(pid) == pid  # a terminal's Ctrl-C does not reach it
        with pytest.raises(DataDirectoryInUse, match=f"process {os.getpid()}"):
            async with ChromaChild(tmp_path):
                pass
    assert not alive(pid)
    assert Published.read(tmp_path) is None
    with pytest.raises(StoreUnavailable, match="not running"):
        _ = child.endpoint
    Lease.take(tmp_path).release()


async def test_a_cancelled_owner_still_stops_its_child(tmp_path: Path) -> None:
    before = child_pids()
    with anyio.CancelScope() as scope:
        async with ChromaChild(tmp_path):
            scope.cancel()
            await anyio.sleep_forever()
    assert child_pids() == before
    Lease.take(tmp_path).release()


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with ChromaChild(tmp_path, stop_timeout_seconds=0.1) as child:
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # a stopped process handles no SIGTERM
    assert not alive(pid)


async def test_the_child_itself_holds_the_lock(tmp_path: Path) -> None:
    lease = await asyncio.to_thread(Lease.take, tmp_path)
    async with ChromaChild(tmp_path, lease=lease) as child:
        assert child.pid is not None
        assert tmp_path / "chroma.lock" in open_files(child.pid)


async def test_kill_9_of_the_parent_takes_the_child_along(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    with pytest.raises(DataDirectoryInUse, match=f"process {parent.pid}"):
        Lease.take(tmp_path)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(pid))
    await eventually(lambda: _lock_is_free(tmp_path))


def test_a_launcher_whose_parent_is_gone_starts_nothing(tmp_path: Path) -> None:
    stranger = str(os.getppid())
    ended = subprocess.run(
        [sys.executable, "-P", str(LAUNCHER), stranger, str(tmp_path / "chroma"), "1", "3"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode != 0
    assert "is gone" in ended.stderr
    assert not (tmp_path / "chroma").exists()


def _lock_is_free(data_dir: Path) -> bool:
    try:
        Lease.take(data_dir).release()
    except DataDirectoryInUse:
        return False
    return True

"""What the tests of dense search share: rows, waiting, and a Chroma of someone else's."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import numpy as np

from retrieval.search import ChromaEndpoint, VectorRow
from retrieval.search.child import free_port
from retrieval.types import passage_id

DEADLINE_SECONDS = 30.0
HASH = "a" * 64


def row(
    chunk: int, vector: list[float], file_id: str = "file-1", content_hash: str = HASH
) -> VectorRow:
    key = passage_id(file_id, content_hash, chunk)
    return VectorRow(key, file_id, content_hash, np.array(vector, dtype=np.float32))


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when `condition` holds; fail when it does not within the deadline."""
    with anyio.fail_after(DEADLINE_SECONDS):
        while True:
            result = condition()
            if await result if inspect.isawaitable(result) else result:
                return
            await anyio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs (one that only waits to be reaped does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def child_pids() -> set[int]:
    """The processes that this one started and that still run."""
    task = Path(f"/proc/{os.getpid()}/task")
    text = " ".join((thread / "children").read_text() for thread in task.iterdir())
    return {pid for pid in map(int, text.split()) if alive(pid)}


def open_files(pid: int) -> set[Path]:
    return {Path(os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir()}


def unread_bytes(port: int) -> int:
    """What clients have sent to the listener on `port` and it has not read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [fields for fields in rows if int(fields[1].partition(":")[2], 16) == port]
    return sum(int(fields[4].partition(":")[2], 16) for fields in mine)


@contextmanager
def chroma_run(path: Path) -> Iterator[ChromaEndpoint]:
    """A plain `chroma run`, as anyone might start one."""
    port = free_port()
    command = "from chromadb_rust_bindings import cli; import sys; cli(sys.argv)"
    arguments = ["run", "--path", str(path), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield ChromaEndpoint("127.0.0.1", port)
    finally:
        process.kill()
        process.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise

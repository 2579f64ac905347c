"""The `chroma run` child: one per data directory, restarted when it dies, gone when its parent is.

Start it from a thread that lives as long as the process (the main one): on Linux the kernel kills the
child when the *thread* that started it ends. Elsewhere the child of a parent that was killed lives on; it
keeps the lock, and `retrieval.search.connect` joins it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from retrieval.errors import StoreUnavailable
from retrieval.search.base import ChromaEndpoint
from retrieval.search.chroma import TOKEN_PREFIX, ChromaStore
from retrieval.search.lease import Lease, Published

logger = logging.getLogger(__name__)

LAUNCHER = Path(__file__).with_name("launch.py")
#: How many ports are tried before a start is given up.
PORT_ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 10.0
#: A child that lived this long was well: the next restart does not wait.
HEALTHY_SECONDS = 30.0


def free_port() -> int:
    """A loopback port that nobody listens on now; someone else may take it before the child does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ChromaChild:
    """Owns the lock on `data_dir` and a Chroma that serves `data_dir/chroma` while the context is open.

    Entering raises DataDirectoryInUse when another process owns the directory, StoreUnavailable when
    Chroma does not start. `lease`: a lock that was already taken; it is released at the end all the same.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        lease: Lease | None = None,
        pick_port: Callable[[], int] = free_port,
        start_timeout_seconds: float = 30.0,
        stop_timeout_seconds: float = 5.0,
        on_restart: Callable[[], None] | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._lease = lease
        self._pick_port = pick_port
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._on_restart = on_restart
        self._process: Process | None = None
        self._endpoint: ChromaEndpoint | None = None
        self._last_port: int | None = None
        self._failure = ""
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def endpoint(self) -> ChromaEndpoint:
        """Where Chroma listens. Raises StoreUnavailable between a death and the restart."""
        if self._endpoint is None:
            raise StoreUnavailable("Chroma is not running (it is being restarted); try again")
        return self._endpoint

    @property
    def pid(self) -> int | None:
        """The child's process id; None while it is down."""
        return self._process.pid if self._process and self._endpoint else None

    @property
    def log_path(self) -> Path:
        return self._data_dir / "chroma.log"

    @property
    def died_log_path(self) -> Path:
        """What the child that died last had written: the next one writes a log of its own."""
        return self._data_dir / "chroma-died.log"

    async def __aenter__(self) -> Self:
        if self._lease is None:
            self._lease = await asyncio.to_thread(Lease.take, self._data_dir)
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="chroma supervisor")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the child, wait for it, and release the lock; cannot be cancelled halfway."""
        with anyio.CancelScope(shield=True):
            if self._supervisor is not None:
                self._supervisor.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._supervisor
                self._supervisor = None
            await self._stop()
            lease, self._lease = self._lease, None
            if lease is not None:
                await asyncio.to_thread(lease.release)

    async def _supervise(self) -> None:
        """Start the child again each time that it dies, waiting longer while it keeps dying."""
        delay_seconds = 0.0
        while self._process is not None:
            started = time.monotonic()
            code = await self._process.wait()
            self._endpoint = None
            with contextlib.suppress(OSError):
                self.log_path.replace(self.died_log_path)
            logger.warning(
                "Chroma died (exit status %s); starting it again; its log is %s",
                code,
                self.died_log_path,
            )
            if time.monotonic() - started > HEALTHY_SECONDS:
                delay_seconds = 0.0
            while self._endpoint is None:
                await asyncio.sleep(delay_seconds)
                delay_seconds = min(
                    max(2 * delay_seconds, FIRST_BACKOFF_SECONDS), LAST_BACKOFF_SECONDS
                )
                try:
                    await self._start()
                except (StoreUnavailable, OSError) as error:
                    logger.error("%s; trying again in %.1f s", error, delay_seconds)
            self.restarts += 1
            if self._on_restart is not None:
                self._on_restart()

    async def _start(self) -> None:
        """Bring up a child on some port, preferring the last one: then no client needs a new address."""
        token = secrets.token_hex(16)
        for attempt in range(PORT_ATTEMPTS):
            again = attempt == 0 and self._last_port is not None
            port = self._last_port if again and self._last_port else self._pick_port()
            endpoint = ChromaEndpoint("127.0.0.1", port)
            self._process = await self._spawn(port)
            if await self._comes_up(endpoint, token):
                published = Published(port, token, self._process.pid)
                await asyncio.to_thread(published.write, self._data_dir)
                self._endpoint, self._last_port = endpoint, port
                return
            await self._stop()
        raise StoreUnavailable(
            f"Chroma did not start on {self._data_dir / 'chroma'} "
            f"({self._failure}); its log is {self.log_path}"
        )

    async def _spawn(self, port: int) -> Process:
        assert self._lease is not None
        path = self._data_dir / "chroma"
        # Not in a thread: cancelled in between, nobody would close what the thread opened.
        with self.log_path.open("wb") as log:
            # -P: the launcher's own folder must not shadow what it imports.
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(LAUNCHER)),
                *map(str, (os.getpid(), path, port, self._lease.descriptor)),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._lease.descriptor,),  # the child keeps the lock if we are killed
                start_new_session=True,  # a Ctrl-C in the terminal is for us: we stop the child last
            )

    async def _comes_up(self, endpoint: ChromaEndpoint, token: str) -> bool:
        """Whether our child answers at `endpoint`; False when it ended or a stranger answers there."""
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                while not await _accepts(endpoint):
                    if self._process is None or self._process.returncode is not None:
                        self._failure = await asyncio.to_thread(self._last_words)
                        return False
                    await asyncio.sleep(0.01)
                ours = await serves_directory(endpoint, self._data_dir / "chroma", token)
                self._failure = f"another Chroma answers on port {endpoint.port}"
                return ours
        except TimeoutError:
            self._failure = f"no answer within {self._start_timeout_seconds:g} s"
        except StoreUnavailable as error:
            self._failure = str(error)
        return False

    async def _stop(self) -> None:
        """End the child and reap it: SIGTERM, then SIGKILL after the limit."""
        process, self._process, self._endpoint = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_timeout_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


async def _accepts(endpoint: ChromaEndpoint) -> bool:
    try:
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def serves_directory(endpoint: ChromaEndpoint, path: Path, token: str) -> bool:
    """Whether the server at `endpoint` keeps its data in `path`: a token left there shows up here.

    Leaves the token's collection on our own server (and no older one), nothing on a stranger's.
    Raises StoreUnavailable when what listens is no Chroma.
    """
    store = ChromaStore(endpoint)
    try:
        await store.plant_token(token)
        tokens = await asyncio.to_thread(_tokens_in, path)
        ours = token in tokens
        for stale in tokens - {token} if ours else {token}:
            await store.remove_token(stale)
        return ours
    finally:
        await store.close()


def _tokens_in(path: Path) -> set[str]:
    """The tokens in a Chroma directory, read from its own database."""
    uri = f"{(path / 'chroma.sqlite3').as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            rows = database.execute(
                "SELECT name FROM collections WHERE name LIKE ?", (TOKEN_PREFIX + "%",)
            ).fetchall()
    except sqlite3.OperationalError:  # no database there yet: whoever answers does not write to it
        return set()
    return {name.removeprefix(TOKEN_PREFIX) for (name,) in rows}

"""The HTTP listener: uvicorn, told when it listens and when it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from uvicorn.loops.auto import auto_loop_factory

from server.settings import Settings

T = TypeVar("T")
#: For how long an idle connection is kept. Longer than its other end keeps it, or a request is sent on a connection
#: that closes this moment: httpx, and so the SDKs, 5 s, which is also uvicorn's default; nginx to an upstream 60 s.
IDLE_SECONDS = 75


def run_in_loop(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in uvicorn's choice of loop: uvloop, where the platform has it, as in vLLM's own server."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        return runner.run(main)


class Listener(uvicorn.Server):
    """Serves an app; `on_started` gets the URL, `on_stopping` is called before connections are drained."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        on_started: Callable[[str], None],
        on_stopping: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                log_level=settings.log_level,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=int(settings.shutdown_seconds),
            )
        )
        self._on_started = on_started
        self._on_stopping = on_stopping

    def stop(self) -> None:
        """End `serve()` after the requests in flight."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end `serve()`, and nothing else.

        Uvicorn's own raises the signal again afterwards, which would kill the process before the engine
        and Chroma were closed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in signals}
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_started(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()
        await super().shutdown(sockets)

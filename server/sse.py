"""Bytes out: one response class for event streams, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import errors, weave

log = logging.getLogger(__name__)
T = TypeVar("T")


async def gone(receive: Receive) -> None:
    """Return when the client has gone away. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, T], until: float | None = None
) -> T:
    """The result of `work`; if the client leaves first, `work` is cancelled and ClientDisconnect raised.

    At `until`, in the event loop's time, it is cancelled with RequestTimeout.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(receive))
    left = None if until is None else max(until - asyncio.get_running_loop().time(), 0)
    try:
        done, _ = await asyncio.wait(
            {task, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise errors.RequestTimeout(
                "the request took longer than it may here (request_timeout_seconds)"
            )
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _cancelled(watch)
        await _cancelled(task)


async def _cancelled(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class EventStream(Response):
    """A `text/event-stream` that never buffers, keeps quiet streams alive and aborts with its client.

    `on_end` is awaited once, with `ok`, `error` or `cancelled`, after the generator was closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        request_id: str,
        keep_alive: bytes | None,
        keep_alive_seconds: float,
        on_end: Callable[[str], Awaitable[None]],
        until: float | None = None,
    ) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events
        self._request_id = request_id
        self._keep_alive = keep_alive
        self._keep_alive_seconds = keep_alive_seconds
        self._on_end = on_end
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        outcome = "cancelled"
        try:
            await unless_gone(receive, self._send_all(send), self._until)
            outcome = "ok"
        except (ClientDisconnect, OSError):
            log.debug("%s: the client went away", self._request_id)
        except Exception as error:
            # The status is out: the failure has to be said in the stream, and then logged.
            outcome = "error"
            if isinstance(error, errors.RequestTimeout):
                log.warning("%s: %s", self._request_id, error)
            else:
                log.exception("%s: the stream failed", self._request_id)
            with contextlib.suppress(OSError):
                await self._send_end(send, weave.event(errors.answer(error, self._request_id).body))
        finally:
            try:
                await self._events.aclose()
            finally:
                await self._on_end(outcome)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pulse = _Pulse(send, self._keep_alive, self._keep_alive_seconds)
        beating = asyncio.ensure_future(pulse.beat()) if self._keep_alive else None
        try:
            async for chunk in self._events:
                await pulse.send(chunk)
        finally:
            if beating is not None:
                await _cancelled(beating)
        await self._send_end(send, b"")

    @staticmethod
    async def _send_end(send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last, "more_body": False})


class _Pulse:
    """Sends chunks, and a keep-alive whenever nothing was sent for a while."""

    def __init__(self, send: Send, keep_alive: bytes | None, seconds: float) -> None:
        self._send = send
        self._keep_alive = keep_alive
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    async def send(self, chunk: bytes) -> None:
        self._last = self._clock()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def beat(self) -> None:
        while True:
            quiet = self._clock() - self._last
            if quiet >= self._seconds and self._keep_alive:
                await self.send(self._keep_alive)
            else:
                await asyncio.sleep(self._seconds - quiet)

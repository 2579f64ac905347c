"""sse: one response class, and what it does when the client, the engine or the socket fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.errors import Overloaded
from server.sse import EventStream, unless_gone

EVENT = b'data: {"a":1}\n\n'


class Client:
    """The other end: what it got, and when it goes."""

    def __init__(self, broken: bool = False) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        self.broken = broken

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.broken and message["type"] == "http.response.body":
            raise OSError("the socket is closed")
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Events, and whether their generator was closed."""

    def __init__(self, *items: bytes | Exception | None) -> None:
        self.items = items
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for item in self.items:
                if item is None:
                    await anyio.sleep_forever()
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            self.closed = True


async def run(source: Source, client: Client, **options: Any) -> list[str]:
    """The outcomes that were reported: one, always."""
    ended: list[str] = []

    async def on_end(outcome: str) -> None:
        assert source.closed
        ended.append(outcome)

    options = {
        "headers": {"x-rag-status": "hit"},
        "keep_alive": None,
        "keep_alive_seconds": 15.0,
        **options,
    }
    response = EventStream(source.events(), request_id="req_1", on_end=on_end, **options)
    with anyio.fail_after(10):
        await response({"type": "http"}, client.receive, client.send)
    return ended


@pytest.mark.anyio
async def test_each_event_is_sent_at_once_and_unbuffered() -> None:
    client = Client()
    assert await run(Source(EVENT, EVENT), client) == ["ok"]
    start, *bodies = client.sent
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-rag-status"] == b"hit"
    assert b"content-length" not in headers
    assert [m["body"] for m in bodies] == [EVENT, EVENT, b""]
    assert [m["more_body"] for m in bodies] == [True, True, False]


@pytest.mark.anyio
async def test_a_client_that_leaves_closes_the_generator() -> None:
    client, source = Client(), Source(EVENT, None)
    async with anyio.create_task_group() as group:
        group.start_soon(leave_after, client, EVENT)
        assert await run(source, client) == ["cancelled"]


async def leave_after(client: Client, seen: bytes) -> None:
    while seen not in client.body:  # noqa: ASYNC110 - the client is told nothing else
        await asyncio.sleep(0)
    client.left.set()


@pytest.mark.anyio
async def test_a_socket_that_breaks_is_a_client_that_left() -> None:
    source = Source(EVENT, None)
    assert await run(source, Client(broken=True)) == ["cancelled"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("full"), "overloaded"), (RuntimeError("secret"), "internal_error")],
)
async def test_a_failure_is_said_in_the_stream(error: Exception, code: str) -> None:
    client = Client()
    assert await run(Source(EVENT, error), client) == ["error"]
    first, last, rest = client.body.split(b"\n\n")
    assert (first + b"\n\n", rest) == (EVENT, b"")
    told = json.loads(last.removeprefix(b"data: "))
    assert set(told) == {"error"}
    assert told["error"]["code"] == code
    assert "secret" not in told["error"]["message"]
    assert client.sent[-1]["more_body"] is False


@pytest.mark.anyio
async def test_a_server_that_stops_cancels() -> None:
    client, source = Client(), Source(EVENT, None)
    task = asyncio.ensure_future(run(source, client))
    while EVENT not in client.body:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


@pytest.mark.anyio
async def test_quiet_streams_are_kept_alive_and_busy_ones_not() -> None:
    beat = b"data: beat\n\n"
    client = Client()
    async with anyio.create_task_group() as group:
        group.start_soon(leave_after, client, beat * 3)
        await run(Source(EVENT, None), client, keep_alive=beat, keep_alive_seconds=0.01)
    assert client.body.startswith(EVENT + beat * 3)
    busy = Client()
    await run(Source(*[EVENT] * 50), busy, keep_alive=beat, keep_alive_seconds=10.0)
    assert busy.body == EVENT * 50


@pytest.mark.anyio
async def test_unless_gone() -> None:
    client = Client()

    async def result() -> int:
        return 5

    assert await unless_gone(client.receive, result()) == 5
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            client.left.set()
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(ClientDisconnect):
        await unless_gone(client.receive, endless())
    assert cancelled.is_set()


@pytest.mark.anyio
async def test_what_fails_is_raised_as_it_is() -> None:
    async def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await unless_gone(Client().receive, fails())

"""middleware: what only shows below HTTP; `api/test_access.py` and `api/test_bad_input.py` have the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge
from server.middleware import BodyLimit, Doorkeeper, RequestId


class Inner:
    """Reads the whole body and answers with nothing."""

    def __init__(self) -> None:
        self.scope: Scope = {}
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        if scope["type"] == "http":
            more = True
            while more:
                message = await receive()
                self.body += message["body"]
                more = message["more_body"]
            await send({"type": "http.response.start", "status": 204, "headers": []})


async def call(app: ASGIApp, scope: dict[str, Any], *pieces: bytes) -> list[Message]:
    """What the app sends for a request with a body in these pieces."""
    sent: list[Message] = []
    left = list(pieces)

    async def receive() -> Message:
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "headers": [], "state": {"request_id": "r"}, **scope}, receive, send)
    return sent


MIDDLEWARE: list[Callable[[ASGIApp], ASGIApp]] = [
    RequestId,
    lambda app: Doorkeeper(app, allowed_hosts=(), allowed_origins=()),
    lambda app: BodyLimit(app, max_bytes=1),
]


@pytest.mark.anyio
@pytest.mark.parametrize("make", MIDDLEWARE)
async def test_what_is_not_http_passes_through(make: Callable[[ASGIApp], ASGIApp]) -> None:
    inner = Inner()
    await call(make(inner), {"type": "lifespan"})
    assert inner.scope["type"] == "lifespan"


@pytest.mark.anyio
async def test_a_body_of_exactly_the_limit_passes() -> None:
    inner = Inner()
    (start,) = await call(BodyLimit(inner, max_bytes=6), {}, b"abc", b"", b"def")
    assert (start["status"], inner.body) == (204, b"abcdef")


@pytest.mark.anyio
async def test_one_byte_more_is_too_large_as_soon_as_it_is_seen() -> None:
    inner = Inner()
    with pytest.raises(BodyTooLarge, match="max_body_bytes"):
        await call(BodyLimit(inner, max_bytes=6), {}, b"abc", b"defg", b"never read")
    assert inner.body == b"abc"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("declared", "status"), [(b"6", 204), (b"7", 413), (b"1" * 5000, 413), (b"x", 204)]
)
async def test_the_declared_length(declared: bytes, status: int) -> None:
    limit = BodyLimit(Inner(), max_bytes=6)
    start, *_ = await call(limit, {"headers": [(b"content-length", declared)]}, b"")
    assert start["status"] == status


@pytest.mark.anyio
@pytest.mark.parametrize("offered", [b"plain-1", b"", b"\xe9", b"a\x00b", b"x" * 129])
async def test_the_request_id(offered: bytes) -> None:
    inner = Inner()
    headers = [(b"x-request-id", offered)]
    (start,) = await call(RequestId(inner), {"headers": headers, "state": {}}, b"")
    ((name, echoed),) = start["headers"]
    assert name == b"x-request-id"
    assert echoed.decode() == inner.scope["state"]["request_id"]
    assert (echoed == offered) == (offered == b"plain-1")

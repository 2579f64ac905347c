"""Plain ASGI middleware: request ids, who may come in by address, how much they may send."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, Forbidden, answer
from server.settings import LOOPBACK_HOSTS
from server.telemetry import logs
from server.telemetry.traceparent import context_of

MAX_REQUEST_ID = 128


class RequestId:
    """Gives every answer an `x-request-id`: the client's own if it is plain text, else one minted here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        plain = 0 < len(offered) <= MAX_REQUEST_ID and offered.isascii() and offered.isprintable()
        request_id = offered if plain else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        # Never taken back: an internal error is logged outside of this, and each request has a task of its own.
        client = context_of(Headers(scope=scope))
        logs.in_request(request_id, None if client is None else client.trace_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Leased:
    """Gives a request the index that is current when it comes, and keeps that open until it is answered to the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with scope["app"].state.services.handover.lease() as knowledge:
            scope.setdefault("state", {})["knowledge"] = knowledge
            await self._app(scope, receive, send)


class Doorkeeper:
    """Turns away pages that a browser was tricked into: a foreign `Host` (DNS rebinding) or `Origin`.

    Only where no key protects the server; with keys a page has nothing to send.
    """

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Collection[str], allowed_origins: Collection[str]
    ) -> None:
        self._app = app
        self._hosts = {*LOOPBACK_HOSTS, *(host.lower() for host in allowed_hosts)}
        self._origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refusal(Headers(scope=scope))):
            await _refuse(refused, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Forbidden | None:
        host = headers.get("host", "")
        if _hostname(f"http://{host}") not in self._hosts:
            return Forbidden(
                f"this server does not answer to the host {host!r}; list it in allowed_hosts, or set a key",
                param="Host",
            )
        origin = headers.get("origin")
        if origin is None or origin in self._origins or _netloc(origin) == host:
            return None
        return Forbidden(
            f"pages from {origin!r} may not use this server; list the origin in allowed_origins",
            param="Origin",
        )


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


class BodyLimit:
    """Answers 413 as soon as a body is known to be too large, by its declared or its real length."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        # Python refuses to read numbers of thousands of digits.
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max:
            await _refuse(self._error(), scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max:
                raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max} bytes (max_body_bytes)")


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    told = answer(error, scope["state"]["request_id"])
    response = JSONResponse(told.body, told.status, headers=dict(told.headers))
    await response(scope, receive, send)

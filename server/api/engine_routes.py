"""The engine's own routes that are open: an allow-list, and on request its generating routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import Caller
from server.deps import CallerDep, ServicesDep
from server.errors import Draining, NotFound, Overloaded, envelope
from server.limits import BYTES_PER_TOKEN, Admission
from server.openapi import takes
from server.plan import Models, split_model
from server.sse import unless_gone
from server.telemetry.metrics import Metrics
from server.wire.common import Wire

#: Routes that read the model's tokenizer and nothing else.
ALLOWED = {"/tokenize": ["POST"], "/detokenize": ["POST"], "/version": ["GET"]}
#: Routes that generate and would bypass grounding: open only with `expose_engine_routes`.
GENERATING = (
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/invocations",
    "/v1/chat/completions/batch",
)
#: Headers that are between the client and us.
PRIVATE = (b"authorization", b"cookie", b"x-request-id", b"content-length")

router = APIRouter()


class EngineResponse(Response):
    """Hands the request to the engine's app; only its errors are put in OpenAI's envelope."""

    def __init__(
        self, app: ASGIApp, body: bytes, admission: Admission, caller: Caller, metrics: Metrics
    ) -> None:
        super().__init__()
        self._metrics = metrics
        self._app = app
        self._request_body = body
        self._admission = admission
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in PRIVATE]
        # Its own state and app: the engine's middleware must not find ours.
        inner = {"type": "http", "headers": headers, "state": {}}
        inner |= {key: scope[key] for key in scope if key in PASSED}
        tokens = len(self._request_body) // BYTES_PER_TOKEN
        place = self._admission.enter(scope["path"], self._caller, tokens)
        converted = _Converted(send)
        outcome: str | None = "error"
        try:
            if place.state == "waiting":
                await unless_gone(receive, place.turn())
            await self._app(inner, self._replayed(receive), converted)
            outcome = converted.outcome
        except (Overloaded, Draining):
            outcome = None  # admission has counted it
            raise
        except ClientDisconnect:
            outcome = "cancelled"  # nobody is there to be answered
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            place.leave()
            if outcome is not None:
                self._metrics.requests.labels(outcome).inc()

    def _replayed(self, receive: Receive) -> Receive:
        """The body that was read, then whatever comes after it (the client leaving)."""
        messages = iter([{"type": "http.request", "body": self._request_body, "more_body": False}])

        async def replayed() -> Message:
            return next(messages, None) or await receive()

        return replayed


PASSED = (
    "method",
    "path",
    "raw_path",
    "query_string",
    "http_version",
    "scheme",
    "server",
    "client",
    "asgi",
)


class _Converted:
    """Passes a good answer on byte for byte, and gathers a bad one to convert it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    @property
    def outcome(self) -> str:
        """As a request's: a wrong one is not our error."""
        if self._start is None:
            return "ok"
        return "rejected" if self._start["status"] < 500 else "error"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body"):
            await self._send_error(self._start["status"])

    async def _send_error(self, status: int) -> None:
        status = 400 if status == 422 else status
        error_type = "invalid_request_error" if status < 500 else "server_error"
        message, param = _read_error(self._body)
        body = json.dumps(envelope(message, error_type, param=param)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if status >= 500:
            headers.append((b"x-should-retry", b"false"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _read_error(body: bytes) -> tuple[str, str | None]:
    try:
        error: Any = json.loads(body)["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace"), None


async def forward(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """One of the engine's routes, by the model names that a chat may use where it only reads the tokenizer.

    Raises NotFound for a generating one that is not exposed, ModelNotFound, BadRequest.
    """
    path = request.url.path
    if path in GENERATING and not services.settings.expose_engine_routes:
        raise NotFound(
            f"{path} is the engine's own route and bypasses grounding; expose_engine_routes opens it"
        )
    # Read here, so that a body over the limit is our 413 and not an error within the engine's app.
    body = await request.body()
    if path in ALLOWED:
        body = _renamed(body, services.models)
    return EngineResponse(
        services.engine.asgi_app, body, services.admission, caller, services.metrics
    )


def _renamed(body: bytes, models: Models) -> bytes:
    """The body with the engine's own name of its model; what names none is the engine's to read or refuse."""
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    name = asked.get("model") if isinstance(asked, dict) else None
    if not isinstance(name, str) or not name:
        return body
    engine_model, _ = split_model(name, models)
    return body if engine_model == name else json.dumps({**asked, "model": engine_model}).encode()


for _path, _methods in ALLOWED.items():
    router.add_api_route(
        _path,
        forward,
        methods=_methods,
        name=_path.strip("/"),
        # The engine knows what these take.
        openapi_extra=None if "GET" in _methods else takes(Wire),
    )
for _path in GENERATING:
    router.add_api_route(_path, forward, methods=["POST"], include_in_schema=False)

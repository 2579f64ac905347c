"""What routes ask for, as named types."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar, cast

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from server.auth import Caller
from server.errors import BadRequest, ReadOnlyIndex
from server.knowledge import Knowledge
from server.limits import estimated_tokens
from server.services import Services
from server.sse import unless_gone
from server.telemetry import logs
from server.telemetry.recorder import Recording
from server.telemetry.traceparent import context_of

M = TypeVar("M", bound=BaseModel)
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


async def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def knowledge_of(request: Request) -> Knowledge:
    """The version of the index that was current when the request came."""
    return cast(Knowledge, request.state.knowledge)


async def caller_of(request: Request) -> Caller:
    """The caller by its key. Raises Unauthorized."""
    services = await services_of(request)
    try:
        return services.keys.caller(request.headers.get("authorization"))
    except Exception:
        services.metrics.rejected.labels("auth").inc()
        raise


def refuse_writes(request: Request, services: Services) -> None:
    """Raises ReadOnlyIndex for a write to the index of a server that answers from published versions."""
    if services.settings.published_dir is not None and request.method in WRITES:
        raise ReadOnlyIndex(
            "this server answers from published versions of its index and takes no documents itself: publish a new "
            "version with `groundwire ingest PATH --store NAME --publish DIR` (on Modal: "
            "`modal run modal_deploy.py::ingest`), and it is taken over while the server runs"
        )


async def request_id_of(request: Request) -> str:
    return cast(str, request.state.request_id)


def recorded(
    request: Request, services: Services, route: str, id_prefix: str | None = None
) -> Recording:
    """The record of a request that begins now, in its client's trace or one of its own.

    `id_prefix` is that of its completion; None: it makes none.
    """
    span = services.tracer.begin(context_of(request.headers))
    recording = Recording(
        services.metrics, route, id_prefix, request_id=request.state.request_id, span=span
    )
    logs.in_trace(recording.trace_id)
    return recording


ServicesDep = Annotated[Services, Depends(services_of)]
KnowledgeDep = Annotated[Knowledge, Depends(knowledge_of)]
CallerDep = Annotated[Caller, Depends(caller_of)]
RequestIdDep = Annotated[str, Depends(request_id_of)]


@asynccontextmanager
async def admitted(
    request: Request, services: Services, caller: Caller, route: str, until: float | None = None
) -> AsyncIterator[None]:
    """A place for this request; one that waits is given up when its client leaves.

    `until` is in the event loop's time. Raises Overloaded, RateLimited and Draining at once, before the body
    is read; later Overloaded for a wait too long, RequestTimeout, and ClientDisconnect.
    """
    tokens = estimated_tokens(request.headers.get("content-length"))
    place = services.admission.enter(route, caller, tokens)
    services.metrics.count_tenant(caller.tenant)
    try:
        if place.state == "waiting":
            await request.body()  # behind it comes the client's leaving
            await unless_gone(request.receive, place.turn(), until)
        yield
    finally:
        place.leave()


async def read_json(request: Request, model: type[M]) -> tuple[dict[str, object], M]:
    """The body as it came and as `model` reads it.

    Raises BadRequest for another content type, for what is no UTF-8, no JSON or no object, and for a wrong
    field, which it names.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # A form that a foreign page posts cannot carry this type without the browser asking us first.
        raise BadRequest(
            "the body must be JSON, with `Content-Type: application/json`", param="Content-Type"
        )
    raw = await request.body()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    present = {key: value for key, value in body.items() if value is not None}
    try:
        return body, model.model_validate(present)
    except ValidationError as error:
        raise BadRequest.of(error) from None

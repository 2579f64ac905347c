"""What the generating routes share: a request is admitted, grounded, answered whole or as a stream, recorded."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import orjson
from fastapi import Request
from fastapi.responses import Response

from retrieval.types import Passage
from server import receipts
from server.auth import Caller
from server.deps import admitted, read_json
from server.knowledge import Knowledge
from server.prepared import Prepared
from server.services import Services
from server.sse import EventStream, unless_gone
from server.telemetry.recorder import Recording
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest


@dataclass(frozen=True, slots=True)
class Generation:
    """One generating route: its path, how it reads a body, and what its answers' ids begin with."""

    route: str
    reads: type[ChatRequest] | type[CompletionRequest]
    id_prefix: str


async def generate(
    generation: Generation,
    request: Request,
    services: Services,
    knowledge: Knowledge,
    caller: Caller,
    request_id: str,
) -> Response:
    """The answer to a request, grounded in the store that it chooses."""
    route = generation.route
    # The wait for a place is part of it.
    recording = Recording(services.metrics, route, generation.id_prefix)
    until, ends_at = services.deadline(), services.stream_end()
    async with AsyncExitStack() as stack:
        with recording.closed_by_failure():
            await stack.enter_async_context(admitted(request, services, caller, route, until))
            prepared = await _prepare(
                generation, request, services, knowledge, caller, recording, until
            )
            if prepared.plan.stream:
                return await _stream(request, services, prepared, request_id, stack, until, ends_at)
            answer = await unless_gone(
                request.receive, services.answering.complete(prepared), until
            )
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        headers = receipts.headers(prepared.receipt, recording.trace.timings_ms())
        recording.close("ok")
        return Response(body, media_type="application/json", headers=headers)


async def _prepare(
    generation: Generation,
    request: Request,
    services: Services,
    knowledge: Knowledge,
    caller: Caller,
    recording: Recording,
    until: float | None,
) -> Prepared:
    body, asked = await read_json(request, generation.reads)
    base, now = base_url(request, services), time.time()

    def link(passage: Passage) -> str:
        return knowledge.links.url(base, caller.tenant, passage, now)

    return await unless_gone(
        request.receive,
        knowledge.grounding.prepare(
            body, asked, request.headers, services.models, caller, link, recording
        ),
        until,
    )


async def _stream(
    request: Request,
    services: Services,
    prepared: Prepared,
    request_id: str,
    stack: AsyncExitStack,
    until: float | None,
    ends_at: float | None,
) -> Response:
    events, keep_alive = await unless_gone(
        request.receive, services.answering.stream(prepared, stack, ends_at), until
    )
    place = stack.pop_all()  # the stream gives the place back when it ends

    async def ended(outcome: str) -> None:
        prepared.recording.close(outcome)
        await place.aclose()

    return EventStream(
        events,
        headers=receipts.headers(prepared.receipt, prepared.recording.trace.timings_ms()),
        request_id=request_id,
        keep_alive=keep_alive,
        keep_alive_seconds=services.settings.keep_alive_seconds,
        on_end=ended,
        until=until,
    )


def base_url(request: Request, services: Services) -> str:
    """Where clients see this server: `public_url`, else what this request was sent to."""
    return services.settings.public_url or str(request.base_url).rstrip("/")

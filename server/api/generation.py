"""What the generating routes share: a request is admitted, grounded, answered whole or as a stream, recorded."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from server import receipts
from server.account import Account, Asked, account_of
from server.api.links import link_for
from server.api.receipts import body_of
from server.auth import Caller
from server.deps import admitted, read_json, recorded
from server.dry_run import count
from server.knowledge import Knowledge
from server.prepared import Prepared
from server.services import Services
from server.sse import EventStream, unless_gone
from server.telemetry.recorder import DRY_RUN, Recording
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

log = logging.getLogger("groundwire.content")


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
    recording = recorded(request, services, route, generation.id_prefix)
    until, ends_at = services.deadline(), services.stream_end()
    async with AsyncExitStack() as stack:
        with recording.closed_by_failure():
            await stack.enter_async_context(admitted(request, services, caller, route, until))
            recording.admitted()
            prepared = await _prepare(
                generation, request, services, knowledge, caller, recording, until
            )
            asked = _asked(generation, request_id, prepared)
            now = _accounts(asked, services, prepared)
            recording.on_close = services.receipts.begin(caller.tenant, asked, now)
            if prepared.plan.dry_run:
                # Nobody waits for a token: what the prompt takes can be counted part by part.
                await unless_gone(request.receive, count(services.engine, prepared), until)
                recording.close(DRY_RUN)
                return _answer(body_of(now(), request, services, knowledge, caller), prepared)
            if prepared.plan.stream:
                return await _stream(request, services, prepared, request_id, stack, until, ends_at)
            answer = await unless_gone(
                request.receive, services.answering.complete(prepared), until
            )
        response = _answer(answer, prepared)
        recording.close("ok")
        return response


def _answer(answer: bytes | dict[str, Any], prepared: Prepared) -> Response:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    headers = receipts.headers(prepared.receipt, prepared.recording.trace.timings_ms())
    return Response(body, media_type="application/json", headers=headers)


def _asked(generation: Generation, request_id: str, prepared: Prepared) -> Asked:
    return Asked(
        completion_id=prepared.completion_id,
        request_id=request_id,
        trace_id=prepared.recording.trace_id,
        created=int(time.time()),
        endpoint=generation.route,
    )


def _accounts(asked: Asked, services: Services, prepared: Prepared) -> Callable[[], Account]:
    """What tells what is known of a request now."""
    engine = services.engine

    def now() -> Account:
        window = engine.answering(prepared.plan.engine_model).max_model_len
        return account_of(asked, prepared, window)

    return now


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
    recording.asked = body
    link = link_for(request, services, knowledge, caller)
    prepared = await unless_gone(
        request.receive,
        knowledge.grounding.prepare(
            body, asked, request.headers, services.models, caller, link, recording
        ),
        until,
    )
    recording.plan = prepared.plan
    if services.settings.log_content:
        _log_content(prepared)
    return prepared


def _log_content(prepared: Prepared) -> None:
    """The prompt with its sources, as the engine gets it."""
    content = prepared.body.get("messages", prepared.body.get("prompt"))
    log.info("%s is asked %s", prepared.completion_id, json.dumps(content, ensure_ascii=False))


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

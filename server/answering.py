"""From a prepared request to its answer: the engine asked, asked again where that may help, its words woven."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from server import weave
from server.answers import Answers
from server.engine.base import (
    Engine,
    EngineDead,
    EngineError,
    EngineOverloaded,
    EngineRejected,
    EngineUnreachable,
    Events,
    choices_of,
    is_chat,
    trouble,
)
from server.prepared import Prepared, free_tokens
from server.weave_text import TextWeaver, weave_text

log = logging.getLogger(__name__)

#: What is said where `on_empty: refuse` finds nothing to answer from.
REFUSAL = "The documents hold nothing about this."


class Answering:
    """Hands prepared requests to the engine and weaves what comes back."""

    def __init__(self, engine: Engine, answers: Answers) -> None:
        self._engine = engine
        self._answers = answers

    async def complete(self, prepared: Prepared) -> bytes | dict[str, Any]:
        """The whole answer: the engine's bytes where retrieval was off, else a body with its sources."""
        recording = prepared.recording
        if prepared.refuses:
            prepared.leave_out_route()
            raw = _refusal(prepared)
        else:
            try:
                raw = await self._answers.complete(
                    self._engine, prepared.body, prepared.completion_id, recording.trace
                )
            except EngineError as error:
                await self._make_ready_again(prepared, error)
                return await self.complete(prepared)
            await self._finished(prepared)
        model = prepared.plan.model
        if not prepared.grounded:
            return weave.rename(raw, model)
        with recording.trace.stage("weave"):
            timings, receipt = recording.trace.timings_ms(), prepared.receipt
            if is_chat(prepared.body):
                return weave.weave(raw, receipt, model=model, timings_ms=timings)
            return weave_text(raw, receipt, model=model, timings_ms=timings, echoed=prepared.echoed)

    async def stream(
        self, prepared: Prepared, stack: AsyncExitStack
    ) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
        """The answer's events, once the engine has accepted; and the keep-alive event, if it has one.

        `stack` aborts the engine's work when it closes: nobody may ever begin to read the events.
        """
        if prepared.refuses:
            prepared.leave_out_route()
            events: Events = _refusal_events(prepared)
        else:
            try:
                events = await self._answers.stream(
                    self._engine, prepared.body, prepared.completion_id, prepared.recording.trace
                )
            except EngineError as error:
                await self._make_ready_again(prepared, error)
                return await self.stream(prepared, stack)
        stack.push_async_callback(events.aclose)
        if not prepared.grounded:
            return self._plain(prepared, events), None
        head: dict[str, Any] = {
            "completion_id": prepared.completion_id,
            "created": int(time.time()),
            "model": prepared.plan.model,
            "choices": 1 if prepared.refuses else choices_of(prepared.body),
        }
        weaver = (
            weave.Weaver(prepared.receipt, **head)
            if is_chat(prepared.body)
            else TextWeaver(prepared.receipt, **head, echoed=prepared.echoed)
        )
        return self._woven(prepared, events, weaver), weaver.keep_alive()

    async def _make_ready_again(self, prepared: Prepared, error: EngineError) -> None:
        """Change the request so that another try may help, before anything was said.

        Raises `error` where nothing may; after a fall back, what it fell from: what the other engine refuses
        or fails at is not the client's mistake. Only that one's being full is its own to say.
        """
        if isinstance(error, EngineOverloaded):
            raise error
        if not isinstance(error, (EngineRejected, EngineUnreachable, EngineDead)):
            raise prepared.fell_from or error
        if isinstance(error, EngineRejected):
            if error.code != "context_length_exceeded" or prepared.body is prepared.bare:
                raise prepared.fell_from or error
            prepared.leave_out_context()
            return
        route = prepared.plan.route
        if route is None or prepared.fell_from or trouble(self._engine, route.other):
            raise prepared.fell_from or error
        log.warning("%s; %s answers in place of %s", error, route.other, route.model)
        prepared.fall_back(error)
        if prepared.body is not prepared.bare:
            counting = (
                free_tokens(self._engine, prepared.plan, one) for one in prepared.one_by_one
            )
            free = await asyncio.gather(*counting)
            if any(tokens is None or tokens < 0 for tokens in free):
                prepared.leave_out_context()

    async def _plain(self, prepared: Prepared, events: Events) -> AsyncGenerator[bytes, None]:
        renamer = weave.Renamer(prepared.plan.model)
        async with aclosing(self._watched(prepared, events)) as watched:
            async for raw in watched:
                yield renamer.feed(raw)

    async def _woven(
        self, prepared: Prepared, events: Events, weaver: weave.Weaver | TextWeaver
    ) -> AsyncGenerator[bytes, None]:
        recording = prepared.recording
        yield weaver.opening(recording.trace.timings_ms())
        weaving = 0.0
        try:
            async with aclosing(self._watched(prepared, events)) as watched:
                async for raw in watched:
                    start = time.perf_counter()
                    out = weaver.feed(raw)
                    weaving += time.perf_counter() - start
                    if out:
                        yield out
        finally:
            recording.trace.record("weave", weaving)

    async def _watched(self, prepared: Prepared, events: Events) -> AsyncGenerator[bytes, None]:
        """The engine's events; notes the first token, turns a failure into the stream's last event."""
        recording = prepared.recording
        try:
            async for raw in events:
                if raw.startswith(weave.ERROR):
                    recording.failed("rejected" if weave.is_refusal(raw) else "error")
                    yield weave.error_event(raw)
                    return
                if not recording.has_token and b'"role"' not in raw:
                    recording.first_token()
                if raw == weave.DONE:
                    # Before the client hears the end, so that what it reads next is already counted.
                    await self._finished(prepared)
                yield raw
        finally:
            await events.aclose()

    async def _finished(self, prepared: Prepared) -> None:
        timings = self._engine.timings(prepared.completion_id)
        if timings is None:
            # In a very full step vLLM lets answers go before it has told of them all: one turn of the loop later.
            await asyncio.sleep(0)
            timings = self._engine.timings(prepared.completion_id)
        prepared.recording.engine_finished(timings)


def _refusal(prepared: Prepared) -> bytes:
    return weave.refusal(
        REFUSAL,
        chat=is_chat(prepared.body),
        completion_id=prepared.completion_id,
        created=int(time.time()),
        model=prepared.plan.model,
    )


async def _refusal_events(prepared: Prepared) -> AsyncGenerator[bytes, None]:
    head = {"id": prepared.completion_id, "object": "chat.completion.chunk"}
    said = {"delta": {"content": REFUSAL}} if is_chat(prepared.body) else {"text": REFUSAL}
    choice = {"index": 0, **said, "finish_reason": "stop"}
    yield weave.event({**head, "choices": [choice]})
    if (prepared.body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        yield weave.event({**head, "choices": [], "usage": usage})
    yield weave.DONE

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
from server.ending import Ending
from server.engine.base import (
    Body,
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

#: What is said where `on_empty: refuse` finds nothing to answer from, and where it could not look.
REFUSAL = "The documents hold nothing about this."
UNSEARCHED = "The documents cannot be searched at the moment."


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
                    self._engine,
                    prepared.body,
                    prepared.completion_id,
                    recording.trace,
                    recording.trace_headers,
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
        self, prepared: Prepared, stack: AsyncExitStack, ends_at: float | None = None
    ) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
        """The answer's events, once the engine has accepted; and the keep-alive event, if it has one.

        `stack` aborts the engine's work when it closes: nobody may ever begin to read the events. At `ends_at`,
        in the event loop's time, the answer ends where it is, as at a token limit.
        """
        if prepared.refuses:
            prepared.leave_out_route()
            events: Events = _refusal_events(prepared)
        else:
            try:
                events = await self._accepted(prepared, ends_at)
            except EngineError as error:
                await self._make_ready_again(prepared, error)
                return await self.stream(prepared, stack, ends_at)
            if ends_at is not None:
                events = self._ending_at(ends_at, prepared, events)
                await anext(
                    events
                )  # a generator that never started would not close the engine's events
        stack.push_async_callback(events.aclose)
        if not prepared.grounded:
            return self._plain(prepared, events), None
        head: dict[str, Any] = {
            "completion_id": prepared.completion_id,
            "created": int(time.time()),
            "model": prepared.plan.model,
            "choices": choices_of(prepared.body),
        }
        weaver = (
            weave.Weaver(prepared.receipt, **head)
            if is_chat(prepared.body)
            else TextWeaver(prepared.receipt, **head, echoed=prepared.echoed)
        )
        return self._woven(prepared, events, weaver), weaver.keep_alive()

    async def _accepted(self, prepared: Prepared, ends_at: float | None) -> Events:
        """The engine's events; none where it has not even accepted the request by then. Raises EngineError."""
        scope = asyncio.timeout_at(ends_at)
        try:
            async with scope:
                return await self._answers.stream(
                    self._engine,
                    prepared.body,
                    prepared.completion_id,
                    prepared.recording.trace,
                    prepared.recording.trace_headers,
                )
        except TimeoutError:
            if not scope.expired():
                raise
            return _no_events()

    async def _ending_at(
        self, ends_at: float, prepared: Prepared, events: Events
    ) -> AsyncGenerator[bytes, None]:
        """First an empty event, then the engine's, and at `ends_at` those that end the answer in their place."""
        ending = Ending(
            chat=is_chat(prepared.body),
            choices=choices_of(prepared.body),
            completion_id=prepared.completion_id,
            created=int(time.time()),
            model=prepared.plan.engine_model,
        )
        try:
            yield b""
            while (raw := await _next(events, ends_at)) is not None:
                if not raw:
                    return
                ending.feed(raw)
                yield raw
            await events.aclose()
            prepared.recording.cut_short()
            for raw in ending.last():
                yield raw
            if not ending.has_usage and (usage := await self._usage(prepared, ending)):
                yield usage
            yield weave.DONE
        finally:
            await events.aclose()

    async def _usage(self, prepared: Prepared, ending: Ending) -> bytes | None:
        """The usage chunk of an answer that was ended, counted from its texts, where the client asked for one.

        None also for a prompt that cannot be counted.
        """
        if not (prepared.body.get("stream_options") or {}).get("include_usage"):
            return None
        engine = self._engine.answering(prepared.plan.engine_model)
        try:
            prompt_tokens = sum([await _count(engine, body) for body in prepared.one_by_one])
        except EngineError:
            return None
        texts = prepared.without_echo(ending.texts)
        counts = await asyncio.to_thread(engine.count_text, texts)
        return ending.usage(prompt_tokens, sum(counts))

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
        # The tokens of several choices, or of an answer that is repeated, come together.
        alone = choices_of(prepared.body) == 1 and "answer" not in recording.trace.cached
        try:
            async for raw in events:
                if raw.startswith(weave.ERROR):
                    recording.failed("rejected" if weave.is_refusal(raw) else "error")
                    yield weave.error_event(raw)
                    return
                if not recording.is_cut and weave.has_token(raw):
                    recording.token(alone=alone)
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


async def _next(events: Events, ends_at: float) -> bytes | None:
    """The next event, empty after the last; None when there is none before `ends_at`."""
    if asyncio.get_running_loop().time() >= ends_at:
        return None
    scope = asyncio.timeout_at(ends_at)
    try:
        async with scope:
            return await anext(events, b"")
    except TimeoutError:
        if not scope.expired():
            raise
        return None


async def _no_events() -> AsyncGenerator[bytes, None]:
    return
    yield b""


async def _count(engine: Engine, body: Body) -> int:
    """The prompt's tokens; a text completion may hold them already."""
    prompt = None if is_chat(body) else body["prompt"]
    if isinstance(prompt, list):
        return len(prompt)
    return await engine.count_tokens(body)


def _refusal_text(prepared: Prepared) -> str:
    return UNSEARCHED if prepared.receipt.status == "degraded" else REFUSAL


def _refusal(prepared: Prepared) -> bytes:
    return weave.refusal(
        _refusal_text(prepared),
        chat=is_chat(prepared.body),
        completion_id=prepared.completion_id,
        created=int(time.time()),
        model=prepared.plan.model,
        choices=choices_of(prepared.body),
    )


async def _refusal_events(prepared: Prepared) -> AsyncGenerator[bytes, None]:
    head = {"id": prepared.completion_id, "object": "chat.completion.chunk"}
    text = _refusal_text(prepared)
    said = {"delta": {"content": text}} if is_chat(prepared.body) else {"text": text}
    for index in range(choices_of(prepared.body)):
        yield weave.event({**head, "choices": [{"index": index, **said, "finish_reason": "stop"}]})
    if (prepared.body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        yield weave.event({**head, "choices": [], "usage": usage})
    yield weave.DONE

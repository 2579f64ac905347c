"""`max_stream_seconds`: a stream whose time is over ends as at a token limit, and the engine is free."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from server.engine.base import NO_TRACE, Body, TraceHeaders
from server.engine.scripted import Script, ScriptedEngine
from server.weave import event
from tests.server.api.bench import QUESTION, ROUTE, Bench, Running, eventually
from tests.server.api.test_chat import payloads
from tests.server.api.test_completions import ROUTE as TEXT_ROUTE

#: Nothing of these scripts ends within a test.
PREFILL = Script(prefill_seconds=600, answer="never")
DECODE = Script(token_seconds=0.01, answer="word [1] " * 50_000, max_model_len=10**7)
LIMIT_SECONDS = 0.4


def chunks_of(running: Running, **fields: Any) -> list[ChatCompletionChunk]:
    """As the official SDK reads them."""
    with OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
        options: dict[str, Any] = {"stream_options": {"include_usage": True}, **fields}
        return list(
            client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": QUESTION}],
                stream=True,
                **options,
            )
        )


def check_freed(running: Running, route: str = ROUTE) -> None:
    eventually(lambda: running.metric("requests_in_flight", route=route) == 0)
    assert len(running.engine.seen.aborted) == 1
    assert running.metric("streams_cut_short_total", route=route) == 1
    assert running.metric("requests_aborted_total", route=route) == 0


def finishes(chunks: list[ChatCompletionChunk]) -> list[tuple[int, str]]:
    return [(c.index, c.finish_reason) for k in chunks for c in k.choices if c.finish_reason]


@pytest.mark.parametrize("grounded", [True, False])
def test_in_the_middle_of_the_answer(bench: Bench, grounded: bool) -> None:
    with bench.serve(DECODE, max_stream_seconds=LIMIT_SECONDS) as running:
        chunks = chunks_of(running, n=2, extra_body={"rag": {"enabled": grounded}})
        check_freed(running)
    assert finishes(chunks) == [(0, "length"), (1, "length")]
    assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1
    texts = [
        "".join(c.delta.content or "" for k in chunks for c in k.choices if c.index == index)
        for index in (0, 1)
    ]
    # The end may come between the two parts of one token.
    assert max(texts, key=len).startswith(min(texts, key=len))
    assert texts[0].startswith("word [1] word")
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 10
    assert usage.completion_tokens == sum(
        text.count("word") + 3 * text.count("[") for text in texts
    )
    annotated = [
        (c.index, len(a))
        for k in chunks
        for c in k.choices
        if (a := (c.delta.model_extra or {}).get("annotations"))
    ]
    expected = [(index, text.count("[1]")) for index, text in enumerate(texts)]
    assert annotated == (expected if grounded else [])


@pytest.mark.parametrize("grounded", [True, False])
def test_before_the_first_token(bench: Bench, grounded: bool) -> None:
    with bench.serve(PREFILL, max_stream_seconds=0.2, keep_alive_seconds=0.05) as running:
        chunks = chunks_of(running, extra_body={"rag": {"enabled": grounded}})
        check_freed(running)
        label = "true" if grounded else "false"
        labels = {"route": ROUTE, "outcome": "ok", "grounded": label}
        assert running.metric("request_duration_seconds_count", **labels) == 1
        assert running.metric("time_to_first_token_seconds_count", grounded=label) == 0
    assert finishes(chunks) == [(0, "length")]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for k in chunks for c in k.choices) == ""
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 0


def test_no_usage_where_none_was_asked_for(bench: Bench) -> None:
    with bench.serve(PREFILL, max_stream_seconds=0.1) as running:
        response = running.ask(stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert all(chunk["choices"] for chunk in payloads(response.text))


class Slow(ScriptedEngine):
    """Says nothing before its first token, not even that it accepted: as some servers do over HTTP."""

    async def stream(
        self, body: Body, request_id: str, trace_headers: TraceHeaders = NO_TRACE
    ) -> Any:
        events = await super().stream(body, request_id, trace_headers)
        first = await anext(events)

        async def rest() -> AsyncIterator[bytes]:
            yield first
            async for raw in events:
                yield raw

        return rest()


def test_an_engine_that_has_not_accepted_yet(bench: Bench) -> None:
    slow = Slow(PREFILL)
    with bench.serve(instead={"slow": slow}, max_stream_seconds=0.1) as running:
        response = running.ask(stream=True)
    *_, last = payloads(response.text)
    assert response.headers["x-rag-status"] == "hit"
    assert last["choices"][0]["finish_reason"] == "length"
    assert len(slow.seen.aborted) == 1


@pytest.mark.parametrize("grounded", [True, False])
def test_text_completions(bench: Bench, grounded: bool) -> None:
    with bench.serve(DECODE, max_stream_seconds=LIMIT_SECONDS) as running:
        body = {
            "model": "scripted@docs" if grounded else "scripted",
            "prompt": [QUESTION, "Two and two are"],
            "max_tokens": 10_000,
            "echo": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"rag": {"footer": True}} if grounded else {}),
        }
        response = running.client.post(TEXT_ROUTE, json=body)
        check_freed(running, TEXT_ROUTE)
        chunks = payloads(response.text)
        prompts = running.engine.seen.bodies[-1]["prompt"]
        prompt_tokens = sum(running.engine.count_text(prompts))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
    assert ends == [(0, "length"), (1, "length")]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in (0, 1)]
    words = 0
    for text, prompt in zip(texts, prompts, strict=True):
        said, _, footer = text.removeprefix(prompt).partition("\n\nSources:\n")
        assert text.startswith(prompt)
        assert bool(footer) == grounded
        words += said.count("word") + 3 * said.count("[1]")
    assert chunks[-1]["usage"]["prompt_tokens"] == prompt_tokens
    assert chunks[-1]["usage"]["completion_tokens"] == words


class Calling(ScriptedEngine):
    """Begins a tool call, and never ends it."""

    def _events(self, body: Body, request_id: str, prompt_tokens: int) -> Any:
        head = {"id": request_id, "object": "chat.completion.chunk", "created": 1, "model": "m"}

        async def half() -> AsyncIterator[bytes]:
            call = {"index": 0, "id": "c", "type": "function"}
            deltas: list[dict[str, Any]] = [
                {"role": "assistant", "content": ""},
                {"tool_calls": [{**call, "function": {"name": "look", "arguments": '{"a'}}]},
            ]
            for delta in deltas:
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                yield event({**head, "choices": [choice]})
            async for raw in ScriptedEngine._events(self, body, request_id, prompt_tokens):
                yield raw

        return half()


def test_a_tool_that_is_half_called(bench: Bench) -> None:
    with bench.serve(instead={"calling": Calling(PREFILL)}, max_stream_seconds=0.2) as running:
        chunks = chunks_of(running)
    assert finishes(chunks) == [(0, "length")]
    assert not any(
        (c.delta.model_extra or {}).get("annotations") for k in chunks for c in k.choices
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_a_stream_that_ends_in_time_is_as_it_was(bench: Bench) -> None:
    texts = []
    for limit in (None, 60.0):
        changes = {"max_stream_seconds": limit, "public_url": "http://here"}
        with bench.serve(Script(answer="word " * 20), **changes) as running:
            text = running.ask(stream=True, stream_options={"include_usage": True}).text
            chunks = payloads(text)
            texts.append([(c["choices"], c.get("usage")) for c in chunks])
            assert running.metric("streams_cut_short_total", route=ROUTE) == 0
    assert texts[0][1:] == texts[1][1:]


def test_an_answer_that_was_ended_is_not_remembered(bench: Bench) -> None:
    changes = {"max_stream_seconds": 0.1, "answer_cache_entries": 10}
    with bench.serve(PREFILL, **changes) as running:
        for _ in range(2):
            response = running.ask(stream=True, temperature=0)
            assert "x-rag-cached" not in response.headers
        assert len(running.engine.seen.bodies) == 2

"""One suite over every engine: what `server/engine/base.py` promises holds for each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from server.engine.base import Engine, EngineDead, EngineRejected
from server.engine.pool import pooled
from server.engine.scripted import Script, ScriptedEngine
from server.engine.upstream import UpstreamOptions, open_upstream
from tests.engine.real import RealServer
from tests.server.api.bench import Bench

T = TypeVar("T")


SCRIPT = Script(answer="one two three four five six seven eight", token_seconds=0.01)


@dataclass(frozen=True)
class Case:
    """An engine and how to run its coroutines. `tells`: it tells its timings; no `model`: its first."""

    engine: Engine
    run: Callable[[Coroutine[Any, Any, T]], T]
    tells: bool = True
    model: str | None = None


@contextmanager
def over_http(url: str) -> Iterator[Case]:
    with asyncio.Runner() as runner:
        opened = open_upstream(UpstreamOptions("far", f"{url}/v1"))
        engine = runner.run(opened.__aenter__())
        try:
            yield Case(engine, runner.run, tells=False)
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.fixture(
    params=[
        "scripted",
        "upstream-scripted",
        "pool-first",
        "pool-last",
        pytest.param("vllm", marks=pytest.mark.engine),
        pytest.param("upstream-vllm", marks=pytest.mark.engine),
    ]
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """`upstream-scripted` is our own server's, retrieval off; `upstream-vllm` is vLLM's own.

    A pool is asked for its first engine's model, and for its last one's.
    """
    if request.param == "scripted":
        yield Case(ScriptedEngine(SCRIPT), asyncio.run)
        return
    if request.param.startswith("pool"):
        other = replace(SCRIPT, model="other", answer="no", max_model_len=100_000)
        engines = {"one": ScriptedEngine(SCRIPT), "two": ScriptedEngine(other)}
        if request.param == "pool-last":
            engines = dict(reversed(engines.items()))
        yield Case(asyncio.run(pooled(engines)), asyncio.run, model=SCRIPT.model)
        return
    if request.param == "upstream-scripted":
        bench: Bench = request.getfixturevalue("bench")
        with bench.serve(SCRIPT, default_store=None) as running, over_http(running.url) as far:
            yield far
        return
    real: RealServer = request.getfixturevalue("real")
    if request.param == "vllm":
        yield Case(real.engine, real.run)
        return
    with over_http(real.bare_url) as far:
        yield far


def body(case: Case, **fields: Any) -> dict[str, Any]:
    model = case.model or case.run(case.engine.models())[0].id
    messages = [{"role": "user", "content": "Count to eight."}]
    return {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, **fields}


async def collect(engine: Engine, request: dict[str, Any], request_id: str) -> list[bytes]:
    return [event async for event in await engine.stream(request, request_id)]


def test_whole_answer_has_the_id_we_minted(case: Case) -> None:
    answer = json.loads(case.run(case.engine.complete(body(case), "chatcmpl-aa")))
    assert answer["id"] == "chatcmpl-aa"
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 8


def test_stream_is_whole_events_that_add_up_to_the_whole_answer(case: Case) -> None:
    request = body(case)
    events = case.run(
        collect(
            case.engine,
            {**request, "stream": True, "stream_options": {"include_usage": True}},
            "chatcmpl-ab",
        )
    )
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-ab"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1])
    whole = json.loads(case.run(case.engine.complete(request, "chatcmpl-ac")))
    assert text == whole["choices"][0]["message"]["content"]


def test_timings_are_told_once(case: Case) -> None:
    request = body(case)
    answer = json.loads(case.run(case.engine.complete(request, "chatcmpl-ad")))
    timings = case.engine.timings("chatcmpl-ad")
    if not case.tells:
        assert timings is None
        return
    assert timings is not None
    assert timings.completion_tokens == answer["usage"]["completion_tokens"]
    assert timings.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert timings.decode_seconds > 0
    assert case.engine.timings("chatcmpl-ad") is None


def test_counts_agree_with_usage(case: Case) -> None:
    request = body(case)
    answer = json.loads(case.run(case.engine.complete(request, "chatcmpl-ae")))
    assert case.run(case.engine.count_tokens(request)) == answer["usage"]["prompt_tokens"]
    longer, shorter = case.engine.count_text(["one two three four", "one"])
    assert longer > shorter > 0


def test_over_long_prompt_is_refused_before_the_stream(case: Case) -> None:
    request = body(case, messages=[{"role": "user", "content": "long " * 9000}])
    for stream in (False, True):
        call = case.engine.stream if stream else case.engine.complete
        with pytest.raises(EngineRejected) as refusal:
            case.run(call({**request, "stream": stream}, "chatcmpl-af"))
        assert refusal.value.status == 400
        assert refusal.value.code == "context_length_exceeded"


def test_closing_a_stream_frees_the_engine(case: Case) -> None:
    """A closed stream's request is gone: the engine says nothing more of it, and goes on with others."""

    async def start_and_leave() -> None:
        stream = await case.engine.stream(
            {**body_inside, "stream": True, "max_tokens": 1500, "ignore_eos": True}, "chatcmpl-ag"
        )
        await anext(stream)
        await anext(stream)
        await asyncio.wait_for(stream.aclose(), 1)

    body_inside = body(case)
    case.run(start_and_leave())
    assert case.engine.timings("chatcmpl-ag") is None
    assert case.run(case.engine.complete(body_inside, "chatcmpl-ah"))


def test_cancelling_a_whole_answer_frees_the_engine(case: Case) -> None:
    async def start_and_cancel() -> None:
        call = asyncio.ensure_future(
            case.engine.complete(
                {**body_inside, "max_tokens": 1500, "ignore_eos": True}, "chatcmpl-ai"
            )
        )
        done, _ = await asyncio.wait({call}, timeout=0.03)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 1)

    body_inside = body(case)
    case.run(start_and_cancel())
    assert case.engine.timings("chatcmpl-ai") is None


def test_special_tokens_are_texts(case: Case) -> None:
    tokens = case.engine.special_tokens
    assert "<|im_end|>" in tokens
    assert all(token.strip() for token in tokens)


def test_an_engine_answers_for_its_model(case: Case) -> None:
    card = case.run(case.engine.models())[0]
    answering = case.engine.answering(card.id)
    assert card.id in [own.id for own in case.run(answering.models())]
    assert answering.max_model_len == card.max_model_len
    answering.check_health()


def test_healthy_while_it_lives(case: Case) -> None:
    case.engine.check_health()


def test_scripted_death_is_told() -> None:
    engine = ScriptedEngine(Script(fail="dead"))
    with pytest.raises(EngineDead):
        engine.check_health()

"""One suite over every engine: what `server/engine/base.py` promises holds for each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from server.engine.base import Engine, EngineDead, EngineRejected, EngineUnsupported, sleeper
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


@pytest.fixture(params=["chat", "text"])
def ask(request: pytest.FixtureRequest, case: Case) -> Ask:
    return Ask(case, chat=request.param == "chat")


@dataclass(frozen=True)
class Ask:
    """A kind of request to a case's engine."""

    case: Case
    chat: bool

    def body(self, text: str = "Count to eight.", **fields: Any) -> dict[str, Any]:
        model = self.case.model or self.case.run(self.case.engine.models())[0].id
        asked = {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        return {"model": model, **asked, "max_tokens": 8, "temperature": 0, **fields}

    def id(self, name: str) -> str:
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{name}"

    def whole(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        raw = self.case.run(self.case.engine.complete(request, self.id(name)))
        answer: dict[str, Any] = json.loads(raw)
        return answer

    def events(self, request: dict[str, Any], name: str) -> list[bytes]:
        return self.case.run(collect(self.case.engine, {**request, "stream": True}, self.id(name)))

    def text(self, choice: dict[str, Any]) -> str:
        part = choice.get("message") or choice.get("delta") or {}
        said: str | None = part.get("content") if self.chat else choice["text"]
        return said or ""


async def collect(engine: Engine, request: dict[str, Any], request_id: str) -> list[bytes]:
    return [event async for event in await engine.stream(request, request_id)]


def chunks_of(events: list[bytes]) -> list[dict[str, Any]]:
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]


def test_whole_answer_has_the_id_we_minted(ask: Ask) -> None:
    answer = ask.whole(ask.body(), "aa")
    assert answer["id"] == ask.id("aa")
    assert answer["object"] == ("chat.completion" if ask.chat else "text_completion")
    assert ask.text(answer["choices"][0])
    assert answer["usage"]["completion_tokens"] == 8


def test_stream_is_whole_events_that_add_up_to_the_whole_answer(ask: Ask) -> None:
    request = ask.body()
    usage = {"stream_options": {"include_usage": True}}
    chunks = chunks_of(ask.events({**request, **usage}, "ab"))
    assert {chunk["id"] for chunk in chunks} == {ask.id("ab")}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    text = "".join(ask.text(chunk["choices"][0]) for chunk in chunks[:-1])
    assert text == ask.text(ask.whole(request, "ac")["choices"][0])


@pytest.mark.parametrize("ids", [False, True], ids=["strings", "token-ids"])
def test_prompts_of_a_text_completion_are_choices_in_their_order(case: Case, ids: bool) -> None:
    ask = Ask(case, chat=False)
    prompts: list[Any] = [[504, 505], [506]] if ids else ["One two three", "Red green"]
    request = ask.body(prompt=prompts, n=2, max_tokens=4, echo=not ids)
    request |= {"temperature": 0.8, "seed": 3, "ignore_eos": True}
    choices = ask.whole(request, "ba")["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    texts = [ask.text(choice) for choice in choices]
    assert all(texts)
    if not ids:
        assert [text.startswith(prompts[0]) for text in texts] == [True, True, False, False]
        assert [text.startswith(prompts[1]) for text in texts] == [False, False, True, True]
    streamed = [""] * 4
    for chunk in chunks_of(ask.events(request, "bb")):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += ask.text(choice)
    assert streamed == texts


def test_timings_are_told_once(ask: Ask) -> None:
    answer = ask.whole(ask.body(), "ad")
    timings = ask.case.engine.timings(ask.id("ad"))
    if not ask.case.tells:
        assert timings is None
        return
    assert timings is not None
    assert timings.completion_tokens == answer["usage"]["completion_tokens"]
    assert timings.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert timings.decode_seconds > 0
    assert ask.case.engine.timings(ask.id("ad")) is None


def test_timings_of_several_prompts_add_their_tokens_up(case: Case) -> None:
    ask = Ask(case, chat=False)
    answer = ask.whole(ask.body(prompt=["One two three", "Red green"]), "bc")
    timings = case.engine.timings(ask.id("bc"))
    if case.tells:
        assert timings is not None
        assert timings.prompt_tokens == answer["usage"]["prompt_tokens"]
        assert timings.completion_tokens == answer["usage"]["completion_tokens"]


def test_counts_agree_with_usage(ask: Ask) -> None:
    request = ask.body()
    engine, run = ask.case.engine, ask.case.run
    answer = ask.whole(request, "ae")
    assert run(engine.count_tokens(request)) == answer["usage"]["prompt_tokens"]
    longer, shorter = engine.count_text(["one two three four", "one"])
    assert longer > shorter > 0


def test_over_long_prompt_is_refused_before_the_stream(ask: Ask) -> None:
    request = ask.body("long " * 9000)
    for stream in (False, True):
        call = ask.case.engine.stream if stream else ask.case.engine.complete
        with pytest.raises(EngineRejected) as refusal:
            ask.case.run(call({**request, "stream": stream}, ask.id("af")))
        assert refusal.value.status == 400
        assert refusal.value.code == "context_length_exceeded"


def test_closing_a_stream_frees_the_engine(ask: Ask) -> None:
    """A closed stream's request is gone: the engine says nothing more of it, and goes on with others."""
    engine, request = ask.case.engine, ask.body()

    async def start_and_leave() -> None:
        stream = await engine.stream(
            {**request, "stream": True, "max_tokens": 1500, "ignore_eos": True}, ask.id("ag")
        )
        await anext(stream)
        await anext(stream)
        await asyncio.wait_for(stream.aclose(), 1)

    ask.case.run(start_and_leave())
    assert engine.timings(ask.id("ag")) is None
    assert ask.whole(request, "ah")


def test_cancelling_a_whole_answer_frees_the_engine(ask: Ask) -> None:
    engine, request = ask.case.engine, ask.body()

    async def start_and_cancel() -> None:
        call = asyncio.ensure_future(
            engine.complete({**request, "max_tokens": 1500, "ignore_eos": True}, ask.id("ai"))
        )
        done, _ = await asyncio.wait({call}, timeout=0.03)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 1)

    ask.case.run(start_and_cancel())
    assert engine.timings(ask.id("ai")) is None


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


def test_sleeps_and_wakes_or_says_that_it_cannot(case: Case) -> None:
    async def nap() -> None:
        await sleeper(case.engine).sleep()
        assert isinstance(case.engine, ScriptedEngine)
        assert case.engine.seen.asleep
        await sleeper(case.engine).wake()

    if isinstance(case.engine, ScriptedEngine):
        case.run(nap())
        assert (case.engine.seen.slept, case.engine.seen.asleep) == (1, False)
    else:
        with pytest.raises(EngineUnsupported, match="sleep"):
            case.run(nap())

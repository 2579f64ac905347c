"""Several engines as one: who answers, what holds for all, and which death is the server's."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from server.engine.base import (
    Engine,
    EngineDead,
    EngineError,
    EngineRejected,
    EngineUnreachable,
)
from server.engine.pool import pooled
from server.engine.scripted import Script, ScriptedEngine
from server.engine.upstream import UpstreamOptions, open_upstream

SMALL = Script(model="small", answer="small says", max_model_len=100)
LARGE = Script(model="large", answer="large says", max_model_len=1000)


def pool(**scripts: Script) -> Engine:
    return asyncio.run(pooled({name: ScriptedEngine(script) for name, script in scripts.items()}))


def body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello."}]}


def test_the_engine_that_serves_the_model_answers() -> None:
    both = pool(a=SMALL, b=LARGE)
    assert [card.id for card in asyncio.run(both.models())] == ["small", "large"]
    for model, length in (("small", 100), ("large", 1000)):
        answer = json.loads(asyncio.run(both.complete(body(model), f"chatcmpl-{model}")))
        assert answer["choices"][0]["message"]["content"] == f"{model} says"
        assert both.timings(f"chatcmpl-{model}") is not None
        assert both.answering(model).max_model_len == length
    with pytest.raises(EngineRejected) as caught:
        asyncio.run(both.complete(body("other"), "chatcmpl-x"))
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_an_engine_alone_stays_itself() -> None:
    alone = ScriptedEngine(SMALL)
    assert asyncio.run(pooled({"a": alone})) is alone
    assert alone.answering("small") is alone


def test_a_model_of_two_engines_names_both() -> None:
    with pytest.raises(EngineError, match=r"'a' and 'b' both serve the model 'small'"):
        pool(a=SMALL, b=replace(LARGE, model="small"))


def test_what_is_asked_without_a_model_holds_for_each() -> None:
    async def run() -> None:
        far = UpstreamOptions("far", "http://127.0.0.1:9/v1", None, ("far",), 50)
        async with open_upstream(far) as upstream:
            own = ScriptedEngine(SMALL)
            both = await pooled({"own": own, "far": upstream})
            assert both.max_model_len == 50
            assert both.special_tokens == own.special_tokens | upstream.special_tokens
            texts = ["internationalization", "a b c"]
            counts = zip(own.count_text(texts), upstream.count_text(texts), strict=True)
            assert both.count_text(texts) == [max(pair) for pair in counts]

    asyncio.run(run())


def test_an_upstream_that_is_away_is_no_death_of_the_server() -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            one, two = [
                await stack.enter_async_context(
                    open_upstream(UpstreamOptions(name, "http://127.0.0.1:9/v1", None, (name,), 50))
                )
                for name in ("one", "two")
            ]
            own = ScriptedEngine(SMALL)
            beside, alone = (
                await pooled({"own": own, "one": one}),
                await pooled({"one": one, "two": two}),
            )
            for engine in (one, two):
                alone.check_health()
                with pytest.raises(EngineUnreachable):
                    await engine.complete(body("x"), "chatcmpl-x")
                beside.check_health()
            with pytest.raises(EngineUnreachable, match=r"'one'.*'two'"):
                alone.check_health()
            own.script = Script(fail="dead")
            with pytest.raises(EngineDead):
                beside.check_health()

    asyncio.run(run())

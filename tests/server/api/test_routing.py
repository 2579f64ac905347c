"""Two engines elsewhere behind one server: `auto` between them, and what happens when one is not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from server.engine.base import Engine
from server.engine.scripted import Script, ScriptedEngine
from server.engine.upstream import UpstreamOptions, open_upstream
from tests.engine.test_upstream import OPENING, Answer, chunk, says, upstream, whole
from tests.server.api.bench import ANSWER, QUESTION, Bench, Running, eventually
from tests.server.api.test_log import logged

ROUTING = {"small": "small", "large": "large"}
SMALL, LARGE = Script(model="small", answer=ANSWER), Script(model="large", answer=ANSWER)
CHAT = b"/chat/completions"
NOWHERE = "http://127.0.0.1:9"
LONG = {"max_tokens": 1000}


@dataclass(frozen=True)
class Pair:
    """The grounding server and the two that are its engines; None where there is none at its address."""

    near: Running
    small: Running | None
    large: Running | None

    @property
    def asked(self) -> tuple[int, int]:
        """Requests that reached the small and the large engine."""
        small, large = (
            len(far.engine.seen.bodies) if far else 0 for far in (self.small, self.large)
        )
        return small, large

    def routed(self, route: str, reason: str) -> float:
        return self.near.metric("routed_requests_total", route=route, reason=reason)


@contextmanager
def over(bench: Bench, engines: Mapping[str, Engine], **changes: Any) -> Iterator[Running]:
    with bench.serve(instead=engines, **{"routing": ROUTING, **changes}) as running:
        yield running


@contextmanager
def pair(
    bench: Bench, small: Script | None = SMALL, large: Script | None = LARGE, **changes: Any
) -> Iterator[Pair]:
    """A server over two upstreams, of which those without a script are not there."""
    with ExitStack() as stack:
        far = {
            name: script and stack.enter_context(bench.serve(script, default_store=None))
            for name, script in (("small", small), ("large", large))
        }
        engines = {name: opened(bench, stack, name, running) for name, running in far.items()}
        near = stack.enter_context(over(bench, engines, **changes))
        yield Pair(near, far["small"], far["large"])


def opened(bench: Bench, stack: ExitStack, name: str, far: Running | None) -> Engine:
    url, length = (far.url, far.engine.max_model_len) if far else (NOWHERE, 4096)
    options = UpstreamOptions(name, f"{url}/v1", None, (name,), length)
    opening = open_upstream(options)
    engine = bench.run(opening.__aenter__())
    stack.callback(lambda: bench.run(opening.__aexit__(None, None, None)))
    return engine


def events(text: str) -> list[dict[str, Any]]:
    found = [event.removeprefix("data: ") for event in text.split("\n\n")]
    return [json.loads(event) for event in found if event not in ("", "[DONE]")]


def first(response: Any) -> dict[str, Any]:
    """The body, or a stream's first chunk."""
    streamed = response.headers["content-type"].startswith("text/event-stream")
    body: dict[str, Any] = events(response.text)[0] if streamed else response.json()
    return body


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["auto", "auto@docs", "gpt-4o"])
def test_the_rule_chooses_and_the_answer_says_which(
    bench: Bench, model: str, streamed: bool
) -> None:
    with pair(bench, model_aliases={"gpt-*": "auto"}) as two:
        for fields, route, reason in (({}, "small", "simple"), (LONG, "large", "long_answer")):
            response = two.near.ask(model=model, stream=streamed, **fields)
            assert response.headers["x-rag-model"] == route
            assert response.headers["x-rag-status"] == "hit"
            body = first(response)
            assert body["model"] == model
            assert body["rag"]["route"] == {"to": route, "reason": reason, "model": route}
            eventually(lambda route=route, reason=reason: two.routed(route, reason) == 1)
        assert two.asked == (1, 1)


def test_without_retrieval_only_the_header_says_which(bench: Bench) -> None:
    with pair(bench) as two:
        response = two.near.ask(model="auto@none", **LONG)
        assert response.headers["x-rag-model"] == "large"
        assert response.json()["model"] == "auto@none"
        assert "rag" not in response.json()
        eventually(lambda: two.routed("large", "long_answer") == 1)


def test_a_named_model_is_not_routed(bench: Bench) -> None:
    with pair(bench) as two:
        for model in ("large", "small", "large@none"):
            assert "x-rag-model" not in two.near.ask(model=model).headers
        assert two.asked == (1, 2)
        assert "groundwire_routed_requests_total{" not in two.near.client.get("/metrics").text


def test_a_request_chooses_its_route(bench: Bench) -> None:
    with pair(bench) as two:
        asked = [
            two.near.ask(model="auto", rag={"route": "large"}),
            two.near.ask(model="auto", headers={"X-RAG-Route": "large"}),
            two.near.ask(
                model="auto", headers={"X-RAG-Route": "large"}, rag={"route": "small"}, **LONG
            ),
        ]
        assert [response.headers["x-rag-model"] for response in asked] == [
            "large",
            "large",
            "small",
        ]
        eventually(lambda: two.routed("large", "requested") == 2)


@pytest.mark.parametrize(
    ("param", "headers", "fields"),
    [
        ("rag.route", {}, {"rag": {"route": "medium"}}),
        ("X-RAG-Route", {"X-RAG-Route": "medium"}, {}),
        ("rag.route", {}, {"model": "large", "rag": {"route": "small"}}),
        ("X-RAG-Route", {"X-RAG-Route": "small"}, {"model": "large"}),
    ],
)
def test_a_wrong_route_is_400_and_named(
    bench: Bench, param: str, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    with pair(bench) as two:
        response = two.near.ask(headers=headers, **{"model": "auto", **fields})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert two.asked == (0, 0)


def test_auto_is_listed_where_it_is(bench: Bench, shared: Running) -> None:
    with pair(bench, large=Script(model="large", max_model_len=9000)) as two:
        cards = {card["id"]: card for card in two.near.client.get("/v1/models").json()["data"]}
        assert {"auto", "auto@docs", "small", "large", "large@docs"} <= set(cards)
        assert cards["auto"]["max_model_len"] == 4096
        assert two.near.client.get("/v1/models/auto").json()["id"] == "auto"
    assert shared.client.get("/v1/models/auto").status_code == 404
    assert shared.ask(model="auto").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["auto", "auto@none"])
def test_the_other_engine_answers_for_one_that_is_not_there(
    bench: Bench, model: str, streamed: bool
) -> None:
    with pair(bench, small=None) as two:
        for count in (1, 2):  # tried, then known to be down
            response = two.near.ask(model=model, stream=streamed)
            assert response.status_code == 200
            assert response.headers["x-rag-model"] == "large"
            assert first(response)["model"] == model
            assert response.headers["x-rag-status"] == ("hit" if model == "auto" else "off")
            eventually(lambda count=count: two.routed("large", "fallback") == count)
        assert two.asked == (0, 2)
        assert two.routed("small", "simple") == 0
        if model == "auto" and two.large:
            assert "at most thirty days" in two.large.prompt


def test_a_chosen_route_falls_back_and_a_named_model_does_not(bench: Bench) -> None:
    with pair(bench, large=None) as two:
        response = two.near.ask(model="auto", rag={"route": "large"})
        assert response.headers["x-rag-model"] == "small"
        assert response.json()["rag"]["route"]["reason"] == "fallback"
        refused = two.near.ask(model="large")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "engine_unreachable"
        assert two.asked == (1, 0)


def test_ready_names_each_engine_and_one_is_enough(bench: Bench) -> None:
    with pair(bench, large=None) as two:
        two.near.ask(model="large")
        ready = two.near.client.get("/ready")
        assert (ready.status_code, ready.json()["engine"]) == (200, "ok")
        assert ready.json()["engines"]["small"] == "ok"
        assert "'large' cannot be reached" in ready.json()["engines"]["large"]
        assert not two.near.services.dead.is_set()


@pytest.mark.parametrize("streamed", [False, True])
def test_when_neither_is_there_the_first_one_s_failure_is_told(
    bench: Bench, streamed: bool
) -> None:
    with pair(bench, small=None, large=None) as two:
        for _ in range(2):
            response = two.near.ask(model="auto", stream=streamed)
            assert response.status_code == 503
            assert "'small'" in response.json()["error"]["message"]
        ready = two.near.client.get("/ready")
        assert ready.status_code == 503
        assert "'small'" in ready.json()["engine"]
        assert "'large'" in ready.json()["engine"]


@pytest.mark.parametrize("streamed", [False, True])
def test_context_too_long_for_the_other_window_is_left_out(bench: Bench, streamed: bool) -> None:
    with pair(bench, small=None, large=replace(LARGE, max_model_len=80)) as two:
        for _ in range(2):  # packed for the first one's window; packed for its own
            response = two.near.ask(model="auto", stream=streamed, max_tokens=10)
            assert response.status_code == 200
            assert (response.headers["x-rag-status"], response.headers["x-rag-model"]) == (
                "miss",
                "large",
            )
            assert "x-rag-sources" not in response.headers
            assert first(response)["rag"]["reason"] == "no_room"
        assert two.asked == (0, 2), "nothing was sent that had to be refused"


@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_other_one_refuses_is_the_first_one_s_failure(
    bench: Bench, streamed: bool
) -> None:
    with pair(bench, small=None, large=replace(LARGE, fail="reject")) as two:
        for _ in range(2):
            response = two.near.ask(model="auto", stream=streamed)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_unreachable"
    with pair(bench, small=None, large=replace(LARGE, max_model_len=30)) as two:
        response = two.near.ask("long " * 50, model="auto", stream=streamed)
        assert response.status_code == 503, "for its own engine it was not too long"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Internal Server Error"])
def test_what_the_other_one_fails_at_is_the_first_one_s_failure(
    bench: Bench, status: str, streamed: bool
) -> None:
    broken = says(whole(status, b'{"error":{"message":"no"}}'))
    with ExitStack() as stack:
        small = opened(bench, stack, "small", None)
        large = stack.enter_context(away(bench, broken, models=("large",), max_model_len=4096))
        near = stack.enter_context(over(bench, {"small": small, "large": large}))
        response = near.ask(model="auto", stream=streamed)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unreachable"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_other_one_s_limit_is_the_client_s(bench: Bench, streamed: bool) -> None:
    with pair(bench, small=None, large=replace(LARGE, fail="overloaded")) as two:
        response = two.near.ask(model="auto", stream=streamed)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")


@pytest.mark.parametrize("model", ["auto", "auto@none"])
def test_a_stream_that_has_begun_is_not_repeated(bench: Bench, model: str) -> None:
    script = Script(model="small", answer="a b c d e f", fail="midstream")
    with pair(bench, small=script) as two:
        response = two.near.ask(model=model, stream=True)
        assert response.headers["x-rag-model"] == "small"
        assert "midstream" in events(response.text)[-1]["error"]["message"]
        assert two.asked == (1, 0)
        eventually(lambda: two.routed("small", "simple") == 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_that_is_full_is_not_dead(bench: Bench, streamed: bool) -> None:
    with pair(bench, small=replace(SMALL, fail="overloaded")) as two:
        response = two.near.ask(model="auto", stream=streamed)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["code"] == "overloaded"
        assert two.asked == (1, 0)
        assert two.near.client.get("/ready").json()["engines"]["small"] == "ok"


@contextmanager
def away(bench: Bench, answer: Answer, **options: Any) -> Iterator[Engine]:
    """An upstream that answers by `answer`."""
    opening = upstream(answer, **options)
    try:
        yield bench.run(opening.__aenter__())
    finally:
        bench.run(opening.__aexit__(None, None, None))


@contextmanager
def beside(
    bench: Bench, answer: Answer, **options: Any
) -> Iterator[tuple[Running, ScriptedEngine]]:
    """(a server over an upstream that answers by `answer`, and a large engine in the process; the latter)"""
    large = ScriptedEngine(LARGE)
    with (
        away(bench, answer, models=("small",), max_model_len=4096, **options) as small,
        over(bench, {"scripted": large, "far": small}) as running,
    ):
        yield running, large


@pytest.mark.parametrize("streamed", [False, True])
def test_its_429_is_the_client_s(bench: Bench, streamed: bool) -> None:
    limit = whole("429 Too Many Requests", b'{"error":{"message":"slow down"}}', "retry-after: 17")
    with beside(bench, says(limit)) as (near, large):
        response = near.ask(model="auto", stream=streamed)
        assert (response.status_code, response.headers["retry-after"]) == (429, "17")
        assert not large.seen.bodies


@pytest.mark.parametrize("streamed", [False, True])
def test_what_it_says_of_its_own_failure_is_for_the_log_that_shows_content(
    bench: Bench, streamed: bool
) -> None:
    words = f"no memory at 10.0.0.7 for {QUESTION!r}"
    oops = whole("500 Oops", json.dumps({"error": {"message": words}}).encode())
    for content in (False, True):
        with beside(bench, says(oops)) as (near, _), logged(content=content) as out:
            response = near.ask(model="small", stream=streamed)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "engine_error")
        assert error["message"].startswith("the engine failed")
        assert response.headers["x-request-id"] in error["message"]
        assert "'far' failed: " in out.getvalue()
        assert (QUESTION in out.getvalue()) is content


async def silent(_: bytes, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "answer", [silent, says(b""), says(whole("502 Bad Gateway", b"<html>"))],
    ids=["silent", "hangs up", "bad gateway"],
)  # fmt: skip
def test_before_its_first_byte_the_other_one_takes_over(
    bench: Bench, answer: Answer, streamed: bool
) -> None:
    with beside(bench, answer, read_timeout_seconds=0.2) as (near, large):
        response = near.ask(model="auto", stream=streamed)
        assert response.status_code == 200
        assert response.headers["x-rag-model"] == "large"
        assert len(large.seen.bodies) == 1
        assert first(response)["rag"]["status"] == "hit"


@pytest.mark.parametrize("parts", [(OPENING,), (OPENING, chunk("a"))])
def test_after_it_has_accepted_a_stream_nobody_does(bench: Bench, parts: tuple[bytes, ...]) -> None:
    with beside(bench, says(*parts)) as (near, large):
        text = near.ask(model="auto", stream=True).text
        assert "broke off" in events(text)[-1]["error"]["message"]
        assert not large.seen.bodies


def test_an_answer_that_is_remembered_is_the_same_model_s(bench: Bench) -> None:
    with pair(bench, answer_cache_entries=10) as two:
        for cached in (None, "answer"):
            response = two.near.ask(model="auto", temperature=0)
            assert response.headers.get("x-rag-cached") == cached
            assert response.headers["x-rag-model"] == "small"
        assert (
            two.near.ask(model="auto", temperature=0, rag={"route": "large"}).headers["x-rag-model"]
            == "large"
        )
        assert two.asked == (1, 1)


def test_a_refusal_is_no_model_s_answer(bench: Bench) -> None:
    with pair(bench) as two:
        response = two.near.ask("Zebra?", model="auto@empty", rag={"on_empty": "refuse"})
        assert "documents" in response.json()["choices"][0]["message"]["content"]
        assert "x-rag-model" not in response.headers
        assert two.asked == (0, 0)


def test_the_budget_is_that_of_the_engine_that_answers(bench: Bench) -> None:
    with pair(bench, small=replace(SMALL, max_model_len=80)) as two:
        statuses = [
            two.near.ask(model="auto", rag={"route": route}).headers["x-rag-status"]
            for route in ("small", "large")
        ]
    assert statuses == ["miss", "hit"]


def test_for_an_engine_that_is_known_to_be_down_nothing_is_packed(bench: Bench) -> None:
    """The first request is packed for the window of the one that is not there, the second for the other's."""
    large = ScriptedEngine(LARGE)
    with ExitStack() as stack:
        engines = {"scripted": large, "far": opened(bench, stack, "small", None)}
        near = stack.enter_context(over(bench, engines))
        near.ask(model="large", max_tokens=10)
        full = bench.run(large.count_tokens(large.seen.bodies[-1]))
        large.script = replace(LARGE, max_model_len=full + 10 - 1)
        answers = [near.ask(model="auto", max_tokens=10) for _ in range(2)]
    assert [answer.headers["x-rag-status"] for answer in answers] == ["miss", "hit"]
    assert {answer.headers["x-rag-model"] for answer in answers} == {"large"}
    assert len(large.seen.bodies) == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_each_of_two_that_stay_silent_is_asked_once(bench: Bench, streamed: bool) -> None:
    asked = []

    async def counted(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if CHAT in head:
            asked.append(head)
            await silent(head, reader, writer)
        writer.write(whole("404 Not Found", b"{}"))

    quick = {"max_model_len": 4096, "read_timeout_seconds": 0.2}
    with (
        away(bench, counted, models=("small",), **quick) as small,
        away(bench, counted, models=("large",), **quick) as large,
        over(bench, {"one": small, "two": large}) as near,
    ):
        response = near.ask(model="auto", stream=streamed)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "engine_timeout"
    assert len(asked) == 2


@pytest.mark.parametrize("prompt", [QUESTION, [QUESTION, f"{QUESTION} Please."]])
@pytest.mark.parametrize(("window", "status"), [(4096, "hit"), (120, "miss")])
def test_a_text_completion_falls_back_with_what_fits(
    bench: Bench, prompt: str | list[str], window: int, status: str
) -> None:
    with pair(bench, small=None, large=replace(LARGE, max_model_len=window)) as two:
        for _ in range(2):
            asked = {"model": "auto@docs", "prompt": prompt, "max_tokens": 10}
            response = two.near.client.post("/v1/completions", json=asked)
            assert response.status_code == 200
            assert response.headers["x-rag-model"] == "large"
            assert response.headers["x-rag-status"] == status
            assert len(response.json()["choices"]) == (1 if isinstance(prompt, str) else 2)
            assert response.json()["rag"]["route"]["reason"] == "fallback"
        assert two.asked == (0, 2)

"""A server whose engine is another server: grounding here, the scripted engine there, HTTP between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from server.engine.scripted import Script
from server.engine.upstream import UpstreamOptions, open_upstream
from tests.server.api.bench import ANSWER, ROUTE, Bench, Running, chat, eventually


@contextmanager
def over(bench: Bench, url: str, **options: Any) -> Iterator[Running]:
    """A server over the engine at `url`."""
    known = {"models": ("scripted",), "max_model_len": 4096, **options}
    opened = open_upstream(UpstreamOptions("far", f"{url}/v1", **known))
    engine = bench.run(opened.__aenter__())
    try:
        with bench.serve(instead={"far": engine}) as running:
            yield running
    finally:
        bench.run(opened.__aexit__(None, None, None))


@contextmanager
def two(bench: Bench, script: Script, **options: Any) -> Iterator[tuple[Running, Running]]:
    """(the grounding server, the server that is its engine)."""
    with bench.serve(script, default_store=None) as far, over(bench, far.url, **options) as near:
        yield near, far


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_from_elsewhere_is_grounded_here(bench: Bench, streamed: bool) -> None:
    with two(bench, Script(answer=ANSWER)) as (near, far):
        response = near.ask(stream=streamed)
        assert response.headers["x-rag-status"] == "hit"
        assert "at most thirty days" in far.prompt
        if streamed:
            *chunks, done = response.text.split("\n\n")[:-1]
            assert done == "data: [DONE]"
            bodies = [json.loads(one.removeprefix("data: ")) for one in chunks]
            text = "".join(b["choices"][0]["delta"].get("content") or "" for b in bodies)
            assert bodies[-1]["choices"][0]["finish_reason"] == "stop"
            assert any(b["choices"][0]["delta"].get("annotations") for b in bodies)
        else:
            bodies = [response.json()]
            text = bodies[0]["choices"][0]["message"]["content"]
            assert bodies[0]["choices"][0]["message"]["annotations"]
        assert text == ANSWER
        assert {body["model"] for body in bodies} == {"gpt-4o-mini"}
        assert len({body["id"] for body in bodies}) == 1
        assert bodies[0]["rag"]["status"] == "hit"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_here_stops_the_work_there(bench: Bench, streamed: bool) -> None:
    with two(bench, Script(answer="word " * 1000, token_seconds=0.05)) as (near, far):
        request = near.client.build_request("POST", ROUTE, json=chat(stream=streamed))
        if streamed:
            response = near.client.send(request, stream=True)
            next(response.iter_bytes())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{near.url}{ROUTE}", json=chat(), timeout=0.5, trust_env=False)
        eventually(lambda: len(far.engine.seen.aborted) == 1)
        eventually(lambda: near.in_flight == far.in_flight == 0)


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini@none"])
def test_a_failure_there_in_the_middle_is_told_here(bench: Bench, model: str) -> None:
    with two(bench, Script(answer="a b c d e f", fail="midstream")) as (near, _):
        text = near.ask(stream=True, model=model).text
    *_, last = text.removesuffix("\n\n").split("\n\n")
    assert text.endswith("\n\n")
    assert "midstream" in json.loads(last.removeprefix("data: "))["error"]["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_its_limit_is_told_with_its_retry_after(bench: Bench, streamed: bool) -> None:
    with two(bench, Script(fail="overloaded")) as (near, _):
        response = near.ask(stream=streamed)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "overloaded"


def test_an_engine_that_is_not_there_is_503_and_no_death(bench: Bench) -> None:
    with over(bench, "http://127.0.0.1:9") as near:
        response = near.ask()
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert response.json()["error"]["code"] == "engine_unreachable"
        ready = near.client.get("/ready")
        assert ready.status_code == 503
        assert "cannot be reached" in ready.json()["engine"]
        assert not near.services.dead.is_set()


@pytest.mark.parametrize("streamed", [False, True])
def test_context_that_does_not_fit_after_all_is_taken_out(bench: Bench, streamed: bool) -> None:
    with two(bench, Script(max_model_len=80), max_model_len=100_000) as (near, far):
        response = near.ask(stream=streamed)
        assert response.status_code == 200
        assert response.headers["x-rag-status"] == "miss"
        with_context, without = far.engine.seen.bodies
        assert len(with_context["messages"][-1]["content"]) > len(
            without["messages"][-1]["content"]
        )
        assert without["messages"] == chat()["messages"]
        first = response.text.split("\n\n")[0].removeprefix("data: ")
        assert json.loads(first)["rag"]["reason"] == "no_room"
        eventually(lambda: near.metric("retrievals_total", status="miss") == 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_completion_over_a_server_elsewhere(bench: Bench, streamed: bool) -> None:
    prompts = ["How many days may a loan last?", "How long is tea steeped?"]
    body = {"model": "scripted@docs", "prompt": prompts, "stream": streamed, "n": 2}
    with two(bench, Script(answer=ANSWER)) as (near, far):
        response = near.client.post("/v1/completions", json=body)
        assert response.headers["x-rag-status"] == "hit"
        assert all("</sources>" in prompt for prompt in far.engine.seen.bodies[-1]["prompt"])
    texts = response.text.split("\n\n")[:-2] if streamed else [response.text]
    chunks = [json.loads(one.removeprefix("data: ")) for one in texts]
    said = [""] * 4
    for choice in (choice for one in chunks for choice in one["choices"]):
        said[choice["index"]] += choice["text"]
    assert said == [ANSWER] * 4
    assert len(chunks[0]["rag"]["search_results"]) == 2


def test_prompts_whose_context_does_not_fit_after_all(bench: Bench) -> None:
    prompts = ["How many days may a loan last?", "How long is tea steeped?"]
    with two(bench, Script(max_model_len=80), max_model_len=100_000) as (near, far):
        response = near.client.post(
            "/v1/completions", json={"model": "scripted@docs", "prompt": prompts}
        )
        assert response.headers["x-rag-status"] == "miss"
        assert "x-rag-sources" not in response.headers
        assert far.engine.seen.bodies[-1]["prompt"] == prompts
    rag = response.json()["rag"]
    assert rag["reason"] == "no_room"
    assert [page["data"] for page in rag["search_results"]] == [[], []]


def test_context_that_does_not_fit_may_be_a_refusal(bench: Bench) -> None:
    with two(bench, Script(max_model_len=80), max_model_len=100_000) as (near, far):
        answer = near.ask(rag={"on_empty": "refuse"}).json()
        assert "documents" in answer["choices"][0]["message"]["content"]
        assert len(far.engine.seen.bodies) == 1


def test_a_prompt_too_long_by_itself_is_400(bench: Bench) -> None:
    with two(bench, Script(max_model_len=80)) as (near, _):
        response = near.ask("long " * 200)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"

"""A server whose engine is another server: grounding here, the scripted engine there, HTTP between them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from openai import OpenAI

from server import weave
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
def saying(bench: Bench, *deltas: dict[str, Any], finish: str) -> Iterator[str]:
    """The URL of an engine that streams these deltas, each in a chunk of its own."""
    known = {"id": "theirs", "object": "chat.completion.chunk", "created": 7, "model": "scripted"}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices[-1]["finish_reason"] = finish
    raw = b"".join(weave.event({**known, "choices": [choice]}) for choice in choices) + weave.DONE

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        kind = b"content-type: text/event-stream\r\nconnection: close"
        writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n\r\n" + raw)
        await writer.drain()
        writer.close()

    server = bench.run(asyncio.start_server(answer, "127.0.0.1", 0))
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        bench.loop.call_soon_threadsafe(server.close)


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


def begun(arguments: str) -> list[dict[str, Any]]:
    function = {"name": "look_up", "arguments": arguments}
    return [{"index": 0, "id": "call_1", "type": "function", "function": function}]


#: How OpenAI and how Ollama stream a call.
FORMS: dict[str, list[dict[str, Any]]] = {
    "openai": [
        {"role": "assistant", "content": None, "tool_calls": begun(""), "refusal": None},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"days":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "30}"}}]},
        {},
    ],
    "ollama": [
        {"role": "assistant", "content": "", "reasoning": "So"},
        {"role": "assistant", "content": "By [1] I look."},
        {"role": "assistant", "content": "", "tool_calls": begun('{"days":30}')},
        {"role": "assistant", "content": ""},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_what_comes_with_a_role_from_elsewhere_arrives(bench: Bench, form: str) -> None:
    with saying(bench, *FORMS[form], finish="tool_calls") as url, over(bench, url) as near:
        client = OpenAI(base_url=f"{near.url}/v1", api_key="unused", max_retries=0)
        with client, client.chat.completions.stream(**chat()) as stream:
            message = stream.get_final_completion().choices[0].message
        first_token = "time_to_first_token_seconds_count"
        eventually(lambda: near.metric(first_token, grounded="true") == 1)
    assert message.role == "assistant"
    (call,) = message.tool_calls or ()
    assert (call.id, call.function.name) == ("call_1", "look_up")
    assert call.function.arguments == '{"days":30}'
    ollama = form == "ollama"
    assert (message.content or "") == ("By [1] I look." if ollama else "")
    assert (message.model_extra or {}).get("reasoning") == ("So" if ollama else None)
    starts = [one.url_citation.start_index for one in message.annotations or ()]
    assert starts == ([3] if ollama else [])


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

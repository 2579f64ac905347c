"""`POST /v1/chat/completions`, answered whole and streamed, over real retrieval."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import VectorStoreSearchResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from retrieval.trace import STAGES
from server.answering import REFUSAL
from server.engine.scripted import Script
from server.inject import INSTRUCTION
from tests.server.api.bench import ANSWER, QUESTION, ROUTE, Bench, Running, chat, eventually

GOLDEN = Path(__file__).parents[2] / "golden" / "chat_stream.sse"


def stream(running: Running, **fields: Any) -> tuple[httpx.Response, str]:
    with running.client.stream("POST", ROUTE, json=chat(stream=True, **fields)) as response:
        text = response.read().decode()
    return response, text


def payloads(text: str) -> list[dict[str, Any]]:
    events = text.split("\n\n")
    assert events.pop() == "", "every event ends with a blank line"
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


def test_a_grounded_answer(served: Running) -> None:
    response = served.ask()
    assert response.status_code == 200
    assert response.headers["x-rag-status"] == "hit"
    answer = response.json()
    ChatCompletion.model_validate(answer, strict=False)
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer["id"])
    assert answer["model"] == "gpt-4o-mini"
    message = answer["choices"][0]["message"]
    assert message["content"] == ANSWER
    assert [a["type"] for a in message["annotations"]] == ["url_citation"] * 2
    for annotation in message["annotations"]:
        citation = annotation["url_citation"]
        assert message["content"][citation["start_index"] : citation["end_index"]] == "[1]"
        assert citation["title"] == "handbook.md"
        assert citation["url"].startswith(f"{served.url}/v1/rag/passages/file-")
    rag = answer["rag"]
    (page,) = rag["search_results"]
    assert (rag["status"], rag["cited"], page["search_query"]) == ("hit", True, [QUESTION])
    rows = [VectorStoreSearchResponse.model_validate(row) for row in page["data"]]
    assert rows[0].filename == "handbook.md"
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert response.headers["x-rag-sources"].split(",") == list(
        dict.fromkeys(row.file_id for row in rows)
    )


def test_what_the_engine_gets(served: Running) -> None:
    served.ask(temperature=0.5, user="u", seed=None)
    body = served.engine.seen.bodies[-1]
    assert set(body) == {"model", "messages", "temperature", "user"}
    assert body["model"] == "scripted"
    assert served.prompt.startswith(INSTRUCTION)
    assert "at most thirty days" in served.prompt
    assert served.prompt.endswith(f"</sources>\n\n{QUESTION}")


def test_documents_forge_no_turn(served: Running) -> None:
    served.ask("What does the Quibble clause say about the Zanzibar ferry?")
    assert "Quibble clause" in served.prompt
    assert "odd 'name' < |im_end|>.txt" in served.prompt
    assert "<|im_" not in served.prompt
    assert served.prompt.count("</sources>") == 1


def test_a_citation_leads_to_its_passage(shared: Running) -> None:
    citation = shared.ask().json()["choices"][0]["message"]["annotations"][0]["url_citation"]
    passage = httpx.get(citation["url"], trust_env=False)
    assert passage.status_code == 200
    assert "at most thirty days" in passage.json()["text"]
    assert passage.json()["headings"] == ["Reading room", "Loans"]
    assert passage.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in passage.headers["content-security-policy"]
    for broken in ("/0", "/9999999999999999999", "/x", "/-1", "/²"):
        url = citation["url"].rpartition("/")[0] + ("/999" if broken == "/0" else broken)
        gone = httpx.get(url, trust_env=False)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found"), broken


def test_a_stream_is_the_golden_file(shared: Running, request: pytest.FixtureRequest) -> None:
    response, text = stream(shared, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in response.headers
    normal = normalised(text, shared.url)
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.write_text(normal)
    assert normal == GOLDEN.read_text()
    for payload in payloads(text):
        ChatCompletionChunk.model_validate(payload)


def normalised(text: str, url: str) -> str:
    """Ids, times and measurements made equal from run to run."""
    text = text.replace(url, "http://HOST")
    text = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-ID", text)
    text = re.sub(r"file-[0-9a-f]{32}", "file-ID", text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    text = re.sub(r'"score":[\d.]+', '"score":0.5', text)
    return re.sub(r'"timings_ms":\{[^}]*\}', '"timings_ms":{}', text)


def test_streamed_and_whole_say_the_same(shared: Running) -> None:
    whole = shared.ask().json()
    _, text = stream(shared)
    chunks = payloads(text)
    content = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert content == whole["choices"][0]["message"]["content"]
    (streamed,) = [a for c in chunks if (a := c["choices"][0]["delta"].get("annotations"))]
    assert [a.pop("index") for a in streamed] == [0, 1]
    assert streamed == whole["choices"][0]["message"]["annotations"]
    rag, full = chunks[0]["rag"], whole["rag"]
    assert rag["search_results"] == full["search_results"]
    assert "cited" not in rag
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


def test_one_id_and_one_time(shared: Running) -> None:
    response, text = stream(shared, n=2, stream_options={"include_usage": True})
    chunks = payloads(text)
    for key in ("id", "created", "model", "object"):
        assert len({chunk[key] for chunk in chunks}) == 1
    assert {c["index"] for chunk in chunks for c in chunk["choices"]} == {0, 1}
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert response.headers["x-rag-status"] == "hit"


def test_the_request_id_is_echoed_and_never_used(served: Running) -> None:
    response = served.ask(headers={"X-Request-Id": "mine-1"}, request_id="mine-2")
    assert response.headers["x-request-id"] == "mine-1"
    assert "mine" not in response.json()["id"]
    assert "request_id" not in served.engine.seen.bodies[-1]
    for bad in ("", "é" * 3, "x" * 200):
        made = served.ask(headers={"X-Request-Id": bad.encode()})
        assert re.fullmatch(r"req_[0-9a-f]{32}", made.headers["x-request-id"])


@pytest.mark.parametrize("streamed", [False, True])
def test_off_is_the_engines_answer(served: Running, streamed: bool) -> None:
    response = served.ask(model="scripted@none", stream=streamed)
    assert response.headers["x-rag-status"] == "off"
    assert "x-rag-sources" not in response.headers
    assert served.prompt == QUESTION
    if streamed:
        assert all("rag" not in payload for payload in payloads(response.text))
        assert "url_citation" not in response.text
    else:
        answer = response.json()
        assert "rag" not in answer
        assert answer["choices"][0]["message"]["annotations"] is None


def test_include_text_and_footer(shared: Running) -> None:
    answer = shared.ask(rag={"include_text": True, "footer": True, "max_num_results": 1}).json()
    (row,) = answer["rag"]["search_results"][0]["data"]
    assert "thirty days" in row["content"][0]["text"]
    content = answer["choices"][0]["message"]["content"]
    assert content.startswith(ANSWER + "\n\nSources:\n[1] handbook.md: http://")


# --- miss, and what it does -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content": ""}, "empty_query"),
        ({"content": "   "}, "empty_query"),
        ({"content": []}, "empty_query"),
        ({"model": "scripted@empty"}, "no_hits"),
        ({"max_tokens": 4090}, "no_room"),
        ({"max_tokens": 10**9}, "no_room"),
        ({"rag": {"max_context_tokens": 0}}, "no_room"),
        (
            # No keyword of it is in any document, so that it has the dense third of the score.
            {"rag": {"ranking_options": {"score_threshold": 0.5}}, "content": "xqzzv"},
            "below_threshold",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_miss_says_why(
    served: Running, fields: dict[str, Any], reason: str, streamed: bool
) -> None:
    response = served.ask(
        fields.get("content", QUESTION),
        **{k: v for k, v in fields.items() if k != "content"},
        stream=streamed,
    )
    assert response.status_code == 200
    assert response.headers["x-rag-status"] == "miss"
    rag = payloads(response.text)[0]["rag"] if streamed else response.json()["rag"]
    assert (rag["status"], rag["reason"]) == ("miss", reason)
    assert rag["search_results"][0]["data"] == []
    assert INSTRUCTION not in str(served.engine.seen.bodies[-1])


def test_a_question_that_resembles_nothing_is_a_miss(bench: Bench) -> None:
    with bench.serve(min_similarity=0.99) as running:
        rag = running.ask().json()["rag"]
        assert (rag["status"], rag["reason"]) == ("miss", "below_similarity")


def test_no_user_message_is_off(served: Running) -> None:
    response = served.client.post(
        ROUTE, json={"model": "scripted", "messages": [{"role": "system", "content": "Hi"}]}
    )
    assert (response.status_code, response.headers["x-rag-status"]) == (200, "off")


@pytest.mark.parametrize("streamed", [False, True])
def test_refuse_asks_no_engine(served: Running, streamed: bool) -> None:
    fields = {"stream_options": {"include_usage": True}} if streamed else {}
    response = served.ask(
        model="scripted@empty", rag={"on_empty": "refuse"}, stream=streamed, **fields
    )
    assert response.status_code == 200
    assert not served.engine.seen.bodies
    if streamed:
        chunks = payloads(response.text)
        assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, "stop"]
        assert chunks[-1]["usage"]["total_tokens"] == 0
    else:
        answer = response.json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["total_tokens"] == 0
        assert answer["rag"]["status"] == "miss"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_has_as_many_choices_as_were_asked_for(served: Running, streamed: bool) -> None:
    response = served.ask(model="scripted@empty", rag={"on_empty": "refuse"}, stream=streamed, n=2)
    bodies = payloads(response.text) if streamed else [response.json()]
    said, ended = ["", ""], [0, 0]
    for choice in (choice for body in bodies for choice in body["choices"]):
        part = choice["delta" if streamed else "message"]
        said[choice["index"]] += part.get("content") or ""
        ended[choice["index"]] += choice["finish_reason"] == "stop"
    assert (said, ended) == ([REFUSAL] * 2, [1, 1])


def test_a_hit_is_not_refused(served: Running) -> None:
    assert (
        served.ask(rag={"on_empty": "refuse"}).json()["choices"][0]["message"]["content"] == ANSWER
    )


def test_a_score_that_was_shown_is_a_threshold_that_the_passage_passes(shared: Running) -> None:
    shown = shared.ask().json()["rag"]["search_results"][0]["data"]
    assert len(shown) == 4
    for number, result in enumerate(shown, start=1):
        options = {"score_threshold": result["score"]}
        rag = shared.ask(rag={"ranking_options": options}).json()["rag"]
        assert len(rag["search_results"][0]["data"]) >= number


# --- shapes -----------------------------------------------------------------------------------------


def test_parts_tool_turns_and_prefill(served: Running) -> None:
    parts = [{"type": "text", "text": QUESTION}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    tail = [call, {"role": "tool", "tool_call_id": "1", "content": "42"}]
    prefill = [{"role": "assistant", "content": "It is"}]
    for rest in ([], tail, prefill):
        messages = [
            {"role": "system", "content": "Brief."},
            {"role": "user", "content": parts},
            *rest,
        ]
        response = served.client.post(ROUTE, json={"model": "scripted", "messages": messages})
        assert response.headers["x-rag-status"] == "hit"
        sent = served.engine.seen.bodies[-1]["messages"]
        assert [m["role"] for m in sent] == [m["role"] for m in messages]
        assert sent[0] == messages[0]
        assert sent[2:] == rest
        assert len(sent[1]["content"]) == 2
        assert INSTRUCTION in sent[1]["content"][0]["text"]
        assert sent[1]["content"][1] == parts[0]


def test_file_search_beside_a_function(served: Running) -> None:
    store = served.client.get("/v1/models").json()
    assert any(card["id"] == "scripted@docs" for card in store["data"])
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    search = {"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 1}
    response = served.ask(model="scripted@empty", tools=[search, function], tool_choice="auto")
    assert response.headers["x-rag-status"] == "hit"
    assert len(response.json()["rag"]["search_results"][0]["data"]) == 1
    body = served.engine.seen.bodies[-1]
    assert (body["tools"], body["tool_choice"]) == ([function], "auto")


def test_what_was_answered_can_be_sent_back(served: Running) -> None:
    message = served.ask().json()["choices"][0]["message"]
    history = [{"role": "user", "content": "old"}, message, {"role": "user", "content": QUESTION}]
    response = served.client.post(ROUTE, json={"model": "scripted", "messages": history})
    assert response.status_code == 200
    assert served.engine.seen.bodies[-1]["messages"][1] == {"role": "assistant", "content": ANSWER}


# --- the engine refuses or fails --------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [("reject", 400, None), ("overloaded", 503, "overloaded"), ("dead", 503, "engine_dead")],
)
def test_a_refusal_before_the_first_byte_is_a_status(
    bench: Bench, fail: str, status: int, code: str | None, streamed: bool
) -> None:
    with bench.serve(Script(fail=fail)) as running:
        response = running.ask(stream=streamed)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        assert (response.headers.get("retry-after") is not None) == (status == 503)
        assert running.in_flight == 0


@pytest.mark.parametrize("model", ["scripted", "scripted@none"])
def test_a_failure_midstream_ends_with_an_error_and_a_blank_line(bench: Bench, model: str) -> None:
    with bench.serve(Script(answer="a b c d e", fail="midstream")) as running:
        response, text = stream(running, model=model)
        assert response.status_code == 200
        last = payloads(text)[-1]
        assert set(last) == {"error"}
        assert isinstance(last["error"]["code"], str)
        assert text.endswith("}\n\n")
        assert "[DONE]" not in text
        eventually(lambda: running.in_flight == 0)
        grounded = str(model == "scripted").lower()
        labels = {"route": ROUTE, "outcome": "error", "grounded": grounded}
        assert running.metric("request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_over_long_conversation(served: Running, streamed: bool) -> None:
    response = served.ask("word " * 5000, stream=streamed)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_quiet_streams_are_kept_alive(bench: Bench) -> None:
    with bench.serve(Script(prefill_seconds=0.5, answer="x"), keep_alive_seconds=0.05) as running:
        _, text = stream(running)
        chunks = payloads(text)
        empty = [c for c in chunks[1:] if c["choices"][0]["delta"] == {"content": ""}]
        assert len(empty) >= 3
        assert all(c["choices"][0]["finish_reason"] is None for c in empty)


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_every_stage_is_measured_once(bench: Bench, streamed: bool) -> None:
    script = Script(answer=ANSWER, queue_seconds=0.01, prefill_seconds=0.02)
    with bench.serve(script) as running:
        response = running.ask(stream=streamed)
        rag = payloads(response.text)[0]["rag"] if streamed else response.json()["rag"]
        eventually(lambda: running.in_flight == 0)
        stages = [stage for stage in STAGES if stage != "rerank"]
        for stage in stages:
            count = running.metric("stage_duration_seconds_count", stage=stage, outcome="ok")
            assert count == 1, stage
        timing = dict(
            part.strip().split(";dur=") for part in response.headers["server-timing"].split(",")
        )
        retrieval = stages[: stages.index("inject") + 1]
        expected = retrieval if streamed else stages
        assert list(timing) == expected
        assert list(rag["timings_ms"]) == (retrieval if streamed else stages[:-1])
        for stage, ms in rag["timings_ms"].items():
            assert float(timing[stage]) == pytest.approx(ms, rel=1e-4, abs=1e-3)
            total = running.metric("stage_duration_seconds_sum", stage=stage, outcome="ok")
            assert total * 1000 == pytest.approx(ms, abs=1e-3)
        labels = {"route": ROUTE, "outcome": "ok", "grounded": "true"}
        assert running.metric("request_duration_seconds_count", **labels) == 1
        ttft = running.metric("time_to_first_token_seconds_count", grounded="true")
        assert ttft == (1 if streamed else 0)
        assert running.metric("retrievals_total", status="hit") == 1
        tokens = {
            k: running.metric("tokens_total", kind=k) for k in ("prompt", "context", "completion")
        }
        assert tokens["prompt"] > tokens["context"] > 50
        assert tokens["completion"] == len(ANSWER.split())
        assert running.in_flight == 0


def test_a_rejected_request_is_counted_as_such(served: Running) -> None:
    served.ask(model="unknown")
    labels = {"route": ROUTE, "outcome": "rejected", "grounded": "false"}
    assert served.metric("request_duration_seconds_count", **labels) == 1
    assert served.metric("stage_duration_seconds_count", stage="plan", outcome="error") == 1


def test_the_metrics_page(served: Running) -> None:
    served.ask()
    page = served.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'groundwire_stage_duration_seconds_count{outcome="ok",stage="embed"} 1.0' in page.text
    assert "vllm:groundwire" not in page.text
    openmetrics = served.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_over_the_limit_is_503_before_any_work(bench: Bench) -> None:
    slow = Script(prefill_seconds=60, answer="x")
    with (
        bench.serve(slow, max_running=1, max_queued=0) as running,
        running.client.stream("POST", ROUTE, json=chat(stream=True)) as response,
    ):
        chunks = response.iter_raw()
        next(chunks)
        assert running.in_flight == 1
        refused = running.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        assert running.metric("requests_rejected_total", reason="queue_full") == 1
        assert len(running.engine.seen.bodies) == 1

"""`GET /v1/rag/receipts/{id}` and `rag.dry_run`, by the official SDK and by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.types import Hit
from server.engine.scripted import Script
from tests.server.api.bench import (
    QUESTION,
    ROUTE,
    Bench,
    Running,
    chat,
    eventually,
)
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_chat import payloads
from tests.server.api.test_leaving import DECODE, read_until, request
from tests.server.api.test_openai_sdk import ASK, sync_client
from tests.server.api.test_sticky import turn

TEXT_ROUTE = "/v1/completions"
TEA = "How long is Morva tea steeped?"


def receipt_of(running: Running, receipt_id: str, headers: Any = None) -> dict[str, Any]:
    response = running.client.get(f"/v1/rag/receipts/{receipt_id}", headers=headers)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert body["object"] == "rag.receipt"
    return body


def of(running: Running, response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return receipt_of(running, response.json()["id"])


def reasons(receipt: dict[str, Any]) -> dict[str, str | None]:
    return {row["filename"]: row["reason"] for row in receipt["candidates"]}


def check_sum(receipt: dict[str, Any], prompt_tokens: int) -> None:
    tokens = receipt["tokens"]
    parts = tokens["client"], tokens["earlier_context"], tokens["context"]
    assert (tokens["prompt"], sum(parts)) == (prompt_tokens, prompt_tokens)


def test_the_receipt_of_an_answer(shared: Running) -> None:
    with sync_client(shared) as client:
        raw = client.chat.completions.with_raw_response.create(**ASK)
        answer = raw.parse()
        receipt = client.get(f"/rag/receipts/{answer.id}", cast_to=dict[str, Any])
        by_request = client.get(
            f"/rag/receipts/{raw.headers['x-request-id']}", cast_to=dict[str, Any]
        )
    assert by_request == receipt
    assert receipt["id"] == answer.id
    assert receipt["request_id"] == raw.headers["x-request-id"]
    assert (receipt["outcome"], receipt["stream"], receipt["dry_run"]) == ("ok", False, False)
    assert (receipt["model"], receipt["engine_model"]) == ("gpt-4o-mini", "scripted")
    assert (receipt["status"], receipt["reason"]) == ("hit", None)
    assert receipt["queries"] == [QUESTION]
    assert [store["name"] for store in receipt["stores"]] == ["docs"]
    assert receipt["trace_id"] is None
    rag = (answer.model_extra or {})["rag"]
    (page,) = rag["search_results"]
    kept = sorted((row for row in receipt["candidates"] if row["kept"]), key=lambda r: r["rank"])
    for row, shown in zip(kept, page["data"], strict=True):
        assert shown.items() <= row.items()
        assert row["content"] == []
    best = kept[0]
    assert best["filename"] == "handbook.md"
    assert best["scores"]["search"]["rank"] == best["scores"]["lexical"]["rank"] == 1
    assert best["scores"]["fuse"] == {"rank": 1, "score": best["score"]}
    assert best["scores"]["search"]["score"] == round(receipt["best_similarity"], 6)
    assert httpx.get(best["url"], trust_env=False).json()["text"].endswith("thirty days.")
    assert rag["timings_ms"].items() <= receipt["timings_ms"].items()
    assert answer.usage is not None
    check_sum(receipt, answer.usage.prompt_tokens)
    tokens = receipt["tokens"]
    assert (tokens["window"], tokens["answer_reserve"]) == (4096, 512)
    assert tokens["context"] <= tokens["context_charged"] <= tokens["context_budget"]
    assert tokens["completion"] == answer.usage.completion_tokens
    assert "thirty days" not in json.dumps(receipt)


def test_what_was_dropped_and_why(shared: Running) -> None:
    few = of(shared, shared.ask(rag={"max_num_results": 1}))
    assert reasons(few).pop("handbook.md") is None
    assert sorted(map(str, reasons(few).values())) == ["None", *["over_limit"] * 3]
    low = of(shared, shared.ask(rag={"ranking_options": {"score_threshold": 0.9}}))
    assert sorted(map(str, reasons(low).values())) == ["None", *["below_threshold"] * 3]
    assert low["limits"]["score_threshold"] == 0.9
    small = of(shared, shared.ask(rag={"max_context_tokens": 10}))
    assert set(reasons(small).values()) == {"over_budget"}
    assert (small["status"], small["reason"]) == ("miss", "no_room")
    assert small["tokens"]["context"] == small["tokens"]["context_charged"] == 0


def test_a_miss(bench: Bench) -> None:
    with bench.serve(min_similarity=0.95) as running:
        receipt = of(running, running.ask())
        assert (receipt["status"], receipt["reason"]) == ("miss", "below_similarity")
        assert set(reasons(receipt).values()) == {"below_similarity"}
        assert receipt["best_similarity"] < receipt["limits"]["min_similarity"] == 0.95
        empty = of(running, running.ask(model="scripted@empty"))
        assert (empty["status"], empty["reason"]) == ("miss", "no_hits")
        assert (empty["candidates"], empty["chosen_in"]) == ([], "model")


def test_of_a_request_without_retrieval(shared: Running) -> None:
    response = shared.ask(rag={"enabled": False})
    receipt = of(shared, response)
    assert (receipt["status"], receipt["chosen_in"]) == ("off", "rag.enabled")
    assert receipt["queries"] == receipt["candidates"] == receipt["stores"] == []
    check_sum(receipt, response.json()["usage"]["prompt_tokens"])
    assert receipt["tokens"]["context"] == 0


class Down:
    """Chroma, out of order."""

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        raise StoreUnavailable("out of order")


def test_of_a_degraded_answer(bench: Bench) -> None:
    with bench.serve(dense=Down()) as running:
        receipt = of(running, running.ask())
        assert (receipt["status"], receipt["reason"]) == ("degraded", "unavailable")
        assert receipt["candidates"] == []
        assert receipt["tokens"]["client"] == receipt["tokens"]["prompt"]
        # What never had an answer has no receipt.
        headers = {"x-request-id": "failing"}
        assert running.ask(rag={"on_error": "fail"}, headers=headers).status_code == 503
        assert running.client.get("/v1/rag/receipts/failing").status_code == 404


def test_text_is_there_for_those_who_asked_for_it(served: Running) -> None:
    receipt = of(served, served.ask(rag={"include_text": True}))
    texts = [row["content"][0]["text"] for row in receipt["candidates"]]
    assert "thirty days" in texts[0]
    assert len(texts) == 4


def test_nothing_of_a_document_or_a_prompt_is_kept(served: Running) -> None:
    secret = [{"role": "system", "content": "Zanzibar-prompt"}]
    messages = [*secret, {"role": "user", "content": QUESTION}]
    response = served.client.post(ROUTE, json={**chat(), "messages": messages})
    of(served, response)
    account = served.services.receipts.find("local", response.json()["id"])
    assert QUESTION in repr(account)
    for text in ("thirty days", "eleven minutes", "Zanzibar-prompt"):
        assert text not in repr(account)


def test_of_a_stream_that_runs_and_that_is_left(bench: Bench) -> None:
    with bench.serve(DECODE) as running:
        with request(running, stream=True, max_tokens=3000) as sock:
            said = read_until(sock, b"word")
            (completion_id,) = set(re.findall(r"chatcmpl-[0-9a-f]+", said.decode()))
            receipt = receipt_of(running, completion_id)
            assert receipt["outcome"] is None
            assert (receipt["status"], receipt["stream"]) == ("hit", True)
            assert receipt["tokens"]["client"] > 0
            assert receipt["tokens"]["prompt"] is None
            assert "thirty days" not in json.dumps(receipt)
        eventually(lambda: receipt_of(running, completion_id)["outcome"] == "cancelled")
        receipt = receipt_of(running, completion_id)
        assert {"prefill", "decode"} <= receipt["timings_ms"].keys()
        assert receipt["candidates"][0]["kept"]


def test_of_a_stream_that_ended(served: Running) -> None:
    options = {"include_usage": True}
    response = served.ask(stream=True, stream_options=options, headers={"x-request-id": "a/b?c"})
    events = payloads(response.text)
    eventually(lambda: receipt_of(served, "a%2Fb%3Fc")["outcome"] == "ok")
    receipt = receipt_of(served, "a%2Fb%3Fc")
    assert receipt["id"] == events[0]["id"]
    check_sum(receipt, events[-1]["usage"]["prompt_tokens"])
    assert "decode" in receipt["timings_ms"]


def test_of_what_broke_off(bench: Bench) -> None:
    with bench.serve(Script(answer="a b c d e", fail="midstream")) as running:
        running.ask(stream=True, headers={"x-request-id": "broken"})
        eventually(lambda: receipt_of(running, "broken")["outcome"] == "error")
    with bench.serve(Script(fail="reject")) as running:
        assert running.ask(headers={"x-request-id": "refused"}).status_code == 400
        assert receipt_of(running, "refused")["outcome"] == "rejected"


def test_what_came_out_of_a_cache(bench: Bench) -> None:
    on = {"retrieval_cache_entries": 10, "answer_cache_entries": 10}
    with bench.serve(**on) as running:
        first, again = (of(running, running.ask(temperature=0)) for _ in range(2))
        assert (first["cached"], again["cached"]) == ([], ["retrieval", "answer"])
        assert again["candidates"] == first["candidates"]
        assert again["tokens"]["prompt"] is None
        assert again["tokens"]["client"] == first["tokens"]["client"]


def test_of_a_conversation_whose_sources_stay(bench: Bench) -> None:
    with bench.serve(sticky=True) as running:

        def ask(*texts: str, **rag: Any) -> dict[str, Any]:
            one = {"max_num_results": 1, **rag}
            body = {"model": "gpt-4o-mini", "messages": turn(*texts), "rag": one}
            response = running.client.post(ROUTE, json=body)
            if not rag:
                receipt = of(running, response)
                check_sum(receipt, response.json()["usage"]["prompt_tokens"])
                return receipt
            found: dict[str, Any] = response.json()
            return found

        first = ask(QUESTION)
        alone = first["tokens"]["client"]
        # A dry run leaves no trace in the conversation: its four sources are in no prompt.
        ask(QUESTION, max_num_results=4, dry_run=True)
        second = ask(QUESTION, "Thirty.", TEA)
        assert second["queries"] == [TEA, f"{TEA}\n{QUESTION}\nThirty."]
        assert second["cached"] == ["conversation"]
        (earlier,) = second["earlier_sources"]
        assert (earlier["number"], earlier["filename"]) == (1, "handbook.md")
        (kept,) = (row for row in second["candidates"] if row["kept"])
        assert (kept["number"], kept["filename"]) == (2, "tea.txt")
        assert second["tokens"]["earlier_context"] >= first["tokens"]["context"] > 0
        assert alone < second["tokens"]["client"] < alone + 40


def test_several_prompts_have_a_part_each(served: Running) -> None:
    body = {"model": "scripted@docs", "prompt": [QUESTION, TEA, " "]}
    response = served.client.post(TEXT_ROUTE, json=body)
    receipt = of(served, response)
    assert receipt["endpoint"] == TEXT_ROUTE
    assert (receipt["status"], receipt["queries"], receipt["candidates"]) == ("hit", [], [])
    assert [part["queries"] for part in receipt["parts"]] == [[QUESTION], [TEA], []]
    assert [part["status"] for part in receipt["parts"]] == ["hit", "hit", "miss"]
    assert receipt["parts"][2]["reason"] == "empty_query"
    assert receipt["parts"][1]["candidates"][0]["filename"] == "tea.txt"
    assert receipt["tokens"]["prompt"] == response.json()["usage"]["prompt_tokens"]
    dry = served.client.post(TEXT_ROUTE, json={**body, "rag": {"dry_run": True}}).json()
    assert dry["tokens"]["prompt"] == receipt["tokens"]["prompt"]
    for part in dry["parts"][:2]:
        tokens = part["tokens"]
        assert tokens["prompt"] == tokens["client"] + tokens["context"]
        assert tokens["context"] > 0


def test_tenants_do_not_see_each_other_s(bench: Bench) -> None:
    keys = ["acme:sk-acme", "acme:sk-acme-2", "globex:sk-globex"]
    with bench.serve(api_keys=keys, default_store=None) as running:

        def bearer(key: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}"}

        same = {"x-request-id": "same"}
        answers = {
            key: running.ask(model=f"scripted@{store}", headers={**bearer(key), **same}).json()
            for key, store in (("sk-acme", "acme-docs"), ("sk-globex", "globex-docs"))
        }
        for key, answer in answers.items():
            for receipt_id in (answer["id"], "same"):
                own = receipt_of(running, receipt_id, bearer(key))
                assert own["id"] == answer["id"]
            assert "signature=" in own["candidates"][0]["url"]
        path = f"/v1/rag/receipts/{answers['sk-acme']['id']}"
        assert running.client.get(path, headers=bearer("sk-acme-2")).status_code == 200
        hidden = running.client.get(path, headers=bearer("sk-globex"))
        unknown = running.client.get(f"{path}0", headers=bearer("sk-globex"))
        assert hidden.status_code == unknown.status_code == 404
        assert error_of(hidden) == error_of(unknown)
        assert running.client.get(path).status_code == 401


def test_the_latest_are_kept(bench: Bench) -> None:
    with bench.serve(receipts_kept=2) as running:
        ids = [running.ask().json()["id"] for _ in range(3)]
        codes = [running.client.get(f"/v1/rag/receipts/{i}").status_code for i in ids]
        assert codes == [404, 200, 200]
    with bench.serve(receipts_kept=0) as running:
        response = running.ask()
        path = f"/v1/rag/receipts/{response.json()['id']}"
        assert "receipts_kept" in error_of(running.client.get(path))["message"]


def test_the_trace_that_a_client_names(shared: Running) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    assert of(shared, shared.ask(headers=headers))["trace_id"] == trace_id


# --- dry run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_a_dry_run_asks_the_engine_nothing(served: Running, streamed: bool) -> None:
    with sync_client(served) as client:
        dry = client.post(
            "/chat/completions",
            cast_to=dict[str, Any],
            body={**ASK, "stream": streamed, "rag": {"dry_run": True}},
        )
    assert not served.engine.seen.bodies
    assert (dry["object"], dry["dry_run"], dry["outcome"]) == ("rag.receipt", True, "dry_run")
    assert dry["stream"] is streamed
    assert receipt_of(served, dry["id"]) == dry
    answer = served.ask().json()
    receipt = receipt_of(served, answer["id"])
    assert dry["candidates"] == receipt["candidates"]
    check_sum(dry, answer["usage"]["prompt_tokens"])
    tokens = dry["tokens"]
    assert tokens["messages"] + tokens["template"] == tokens["client"]
    assert (tokens["messages"], tokens["template"]) == (12, 7)
    assert tokens["completion"] is None
    assert not {"queue", "prefill", "decode"} & dry["timings_ms"].keys()


def test_a_dry_run_is_counted_apart(served: Running) -> None:
    response = served.ask(rag={"dry_run": True})
    assert response.headers["x-rag-status"] == "hit"
    labels = {"route": ROUTE, "grounded": "true"}
    count = "request_duration_seconds_count"
    assert served.metric(count, outcome="dry_run", **labels) == 1
    assert served.metric(count, outcome="ok", **labels) == 0
    assert served.metric("tokens_total", kind="context") == 0
    assert served.metric("stage_duration_seconds_count", stage="prefill", outcome="dry_run") == 0
    assert served.in_flight == 0


def test_a_dry_run_shows_what_it_would_be_without_it(served: Running) -> None:
    """For a text completion, too, which `rag` alone would ground."""

    def text(**fields: Any) -> dict[str, Any]:
        body = {"model": "scripted", "prompt": QUESTION, **fields}
        response = served.client.post(TEXT_ROUTE, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    assert text(rag={"dry_run": True})["status"] == "off"
    assert text(model="scripted@docs", rag={"dry_run": True})["status"] == "hit"
    named = {"vector_store_ids": ["docs"], "dry_run": True}
    assert text(rag=named)["chosen_in"] == "rag.vector_store_ids"
    ids = text(prompt=[1, 2, 3], rag={"dry_run": True})
    assert (ids["status"], ids["tokens"]["prompt"]) == ("off", None)
    both = text(prompt=["a b", "c"], rag={"dry_run": True})
    assert (both["tokens"]["prompt"], both["tokens"]["messages"], both["parts"]) == (3, 3, [])
    tool = {"type": "file_search", "vector_store_ids": ["docs"]}
    dry = served.ask(tools=[tool], rag={"dry_run": True}).json()
    assert (dry["status"], dry["chosen_in"]) == ("hit", "tools.vector_store_ids")
    assert not served.engine.seen.bodies


def test_a_dry_run_is_refused_where_the_request_would_be(served: Running) -> None:
    response = served.ask(rag={"dry_run": True, "vector_store_ids": ["nope"]})
    assert response.status_code == 404
    with sync_client(served) as client, pytest.raises(openai.NotFoundError):
        client.get("/rag/receipts/nope", cast_to=dict[str, Any])


def test_many_at_once(bench: Bench) -> None:
    """Streams that overlap have a receipt each."""
    with bench.serve(Script(answer="a b c", token_seconds=0.01)) as running:
        with running.client.stream("POST", ROUTE, json=chat(stream=True)) as one:
            other = running.ask(TEA)
            first = payloads(one.read().decode())[0]["id"]
        eventually(lambda: receipt_of(running, first)["outcome"] == "ok")
        assert receipt_of(running, first)["queries"] == [QUESTION]
        assert of(running, other)["queries"] == [TEA]

"""`POST /v1/completions`, answered whole and streamed, over real retrieval."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Completion, VectorStoreSearchResponse

from retrieval.errors import StoreUnavailable
from server.answering import REFUSAL
from server.engine.scripted import Script
from server.inject import INSTRUCTION
from tests.server.api.bench import ANSWER, QUESTION, Bench, Running, eventually
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_chat import normalised, payloads

ROUTE = "/v1/completions"
GOLDEN = Path(__file__).parents[2] / "golden" / "completions_stream.sse"
TEA = "How long is Morva tea steeped?"
RAG = {"rag": {"vector_store_ids": ["docs"]}}
OFF = {"rag": {"enabled": False}}


def text(prompt: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted@docs", "prompt": prompt, **fields}


def ask(running: Running, prompt: Any = QUESTION, headers: Any = None, **fields: Any) -> Any:
    return running.client.post(ROUTE, json=text(prompt, **fields), headers=headers)


def stream(running: Running, prompt: Any = QUESTION, **fields: Any) -> tuple[httpx.Response, str]:
    body = text(prompt, stream=True, **fields)
    with running.client.stream("POST", ROUTE, json=body) as response:
        said = response.read().decode()
    return response, said


def prompt_of(running: Running) -> Any:
    return running.engine.seen.bodies[-1]["prompt"]


def files(page: dict[str, Any]) -> list[str]:
    return [VectorStoreSearchResponse.model_validate(row).filename for row in page["data"]]


def test_a_grounded_answer(served: Running) -> None:
    response = ask(served)
    assert response.status_code == 200
    assert response.headers["x-rag-status"] == "hit"
    assert response.headers["x-rag-sources"].startswith("file-")
    assert "search;dur=" in response.headers["server-timing"]
    answer = response.json()
    Completion.model_validate(answer, strict=False)
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer["id"])
    assert (answer["object"], answer["model"]) == ("text_completion", "scripted@docs")
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}
    rag = answer["rag"]
    (page,) = rag["search_results"]
    assert (rag["status"], rag["cited"], page["search_query"]) == ("hit", True, [QUESTION])
    assert files(page)[0] == "handbook.md"
    assert {"embed", "search", "pack", "decode"} <= rag["timings_ms"].keys()


def test_what_the_engine_gets(served: Running) -> None:
    ask(served, temperature=0.5, seed=None, messages=[{"role": "user", "content": "x"}], **RAG)
    body = served.engine.seen.bodies[-1]
    assert set(body) == {"model", "prompt", "temperature"}
    assert body["model"] == "scripted"
    assert body["prompt"].startswith(INSTRUCTION)
    assert "at most thirty days" in body["prompt"]
    assert body["prompt"].endswith(f"</sources>\n\n{QUESTION}")


def test_the_prompt_stays_as_it_was_sent(served: Running) -> None:
    prompt = f"\n  {QUESTION}\r\n Answer:\t"
    ask(served, prompt)
    assert prompt_of(served).endswith(prompt)


def test_documents_forge_no_turn(served: Running) -> None:
    ask(served, "What does the Quibble clause say about the Zanzibar ferry?")
    assert "Quibble clause" in prompt_of(served)
    assert "<|im_" not in prompt_of(served)


def test_what_was_set_once_for_all_does_not_ground(served: Running) -> None:
    """Neither the server's default store nor a client's headers; and the body is the engine's own."""
    headers = {"X-RAG": "on", "X-RAG-Vector-Store": "docs", "X-RAG-Top-K": "many"}
    response = ask(served, headers=headers, model="gpt-4o-mini")
    assert response.headers["x-rag-status"] == "off"
    assert prompt_of(served) == QUESTION
    answer = response.json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["model"] == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"model": "gpt-4o-mini@docs"}, {}),
        ({"model": "scripted", "rag": {"vector_store_ids": ["docs"]}}, {}),
        ({"model": "scripted", "rag": {"enabled": True}}, {}),
        ({"model": "scripted", "rag": {}}, {"X-RAG": "off"}),
        ({"model": "scripted@empty", "rag": {}}, {"X-RAG-Vector-Store": "docs"}),
        ({"model": "scripted@empty"}, {"X-RAG-Vector-Store": "docs"}),
    ],
)
def test_ways_in(served: Running, fields: dict[str, Any], headers: dict[str, str]) -> None:
    assert ask(served, headers=headers, **fields).headers["x-rag-status"] == "hit"
    assert "at most thirty days" in prompt_of(served)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({"model": "scripted@none"}, {}), (OFF, {}), ({}, {"X-RAG": "off"})],
)
def test_ways_out(served: Running, fields: dict[str, Any], headers: dict[str, str]) -> None:
    response = ask(served, headers=headers, **fields)
    assert response.headers["x-rag-status"] == "off"
    assert prompt_of(served) == QUESTION
    assert "rag" not in response.json()


def test_each_prompt_has_its_own_question_and_sources(served: Running) -> None:
    prompts = [QUESTION, TEA]
    response = ask(served, prompts, n=2, echo=True, rag={"max_num_results": 1})
    answer = response.json()
    got = prompt_of(served)
    assert [prompt.endswith(asked) for prompt, asked in zip(got, prompts, strict=True)]
    assert ["thirty days" in prompt for prompt in got] == [True, False]
    assert ["eleven minutes" in prompt for prompt in got] == [False, True]
    pages = answer["rag"]["search_results"]
    assert [page["search_query"] for page in pages] == [[QUESTION], [TEA]]
    assert [files(page) for page in pages] == [["handbook.md"], ["tea.txt"]]
    ids = [page["data"][0]["file_id"] for page in pages]
    assert response.headers["x-rag-sources"].split(",") == ids
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [prompt + ANSWER for prompt in (got[0], got[0], got[1], got[1])]


def test_prompts_that_find_nothing_beside_one_that_does(served: Running) -> None:
    answer = ask(served, ["", QUESTION]).json()
    assert prompt_of(served)[0] == ""
    assert answer["rag"]["status"] == "hit"
    assert [bool(page["data"]) for page in answer["rag"]["search_results"]] == [False, True]
    answer = ask(served, ["", " "]).json()
    assert (answer["rag"]["status"], answer["rag"]["reason"]) == ("miss", "empty_query")


def test_the_end_of_a_long_prompt_is_searched(served: Running) -> None:
    prompt = "Morva tea is steeped in cold water. " * 100 + f"\nQuestion: {QUESTION}"
    answer = ask(served, prompt, rag={"max_num_results": 1}).json()
    (query,) = answer["rag"]["search_results"][0]["search_query"]
    assert len(query) <= 1000
    assert prompt.endswith(query)
    assert query.split(" ")[0] in prompt.split(" "), "the first word is whole"


def test_an_echoed_prompt_cites_nothing(bench: Bench) -> None:
    """The instruction in front of the sources shows how to cite: `[1]`."""
    with bench.serve(Script(answer="Nothing is said.")) as running:
        answer = ask(running, echo=True).json()
        assert answer["choices"][0]["text"] == f"{prompt_of(running)}Nothing is said."
        assert answer["rag"]["cited"] is False
        assert ask(running).json()["rag"]["cited"] is False


@pytest.mark.parametrize("echo", [False, True])
def test_a_footer_lists_the_sources_of_each_prompt(served: Running, echo: bool) -> None:
    rag = {"max_num_results": 1, "footer": True}
    fields: dict[str, Any] = {"rag": rag, "echo": echo, "n": 2}
    answer = ask(served, [QUESTION, TEA], **fields).json()
    _, said = stream(served, [QUESTION, TEA], **fields)
    texts = [choice["text"] for choice in answer["choices"]]
    for index, name in enumerate(["handbook.md", "handbook.md", "tea.txt", "tea.txt"]):
        body, _, footer = texts[index].partition("\n\nSources:\n")
        assert body.endswith(ANSWER)
        assert footer.startswith(f"[1] {name}: {served.url}/v1/rag/passages/file-")
        assert "\n" not in footer
    streamed = [""] * 4
    for chunk in payloads(said):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_include_text(shared: Running) -> None:
    answer = ask(shared, rag={"include_text": True}).json()
    assert "thirty days" in answer["rag"]["search_results"][0]["data"][0]["content"][0]["text"]


@pytest.mark.parametrize("streamed", [False, True])
def test_on_empty_refuse(served: Running, streamed: bool) -> None:
    options = {"vector_store_ids": ["empty"], "on_empty": "refuse"}
    fields: dict[str, Any] = {"rag": options, "n": 2}
    if streamed:
        _, said = stream(served, stream_options={"include_usage": True}, **fields)
        opening, *answers, usage = payloads(said)
        assert opening["rag"]["status"] == "miss"
        assert usage["usage"]["total_tokens"] == 0
    else:
        answers = [ask(served, **fields).json()]
        assert answers[0]["rag"]["reason"] == "no_hits"
    choices = [choice for answer in answers for choice in answer["choices"]]
    assert [(one["index"], one["text"]) for one in choices] == [(0, REFUSAL), (1, REFUSAL)]
    assert {answer["object"] for answer in answers} == {"text_completion"}
    assert not served.engine.seen.bodies


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"prompt": [QUESTION] * 33}, "prompt"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": [QUESTION, TEA], "rag": {"on_empty": "refuse"}}, "rag.on_empty"),
        ({"rag": {"sticky": True}}, "rag.sticky"),
        ({"rag": {"dry_run": 1}}, "rag.dry_run"),
        ({"rag": {"filters": {"type": "eq"}}}, "rag.filters"),
        ({"rag": {"surprise": 1}}, "rag.surprise"),
        ({"prompt": {"a": 1}, "model": "scripted"}, "prompt"),
        ({"prompt": ["a", 1], "model": "scripted"}, "prompt"),
        ({"prompt": [-1], "model": "scripted"}, "prompt"),
        ({"n": "two"}, "n"),
        ({"model": "all-MiniLM-L6-v2"}, "model"),
    ],
)
def test_what_is_refused(shared: Running, fields: dict[str, Any], param: str) -> None:
    response = shared.client.post(ROUTE, json={**text(), **fields})
    assert response.status_code == 400, response.text
    assert (error_of(response)["param"] or "").startswith(param)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_without_retrieval_are_the_engines(served: Running, prompt: Any) -> None:
    for fields in ({"model": "scripted"}, {"model": "scripted@docs", **OFF}):
        assert ask(served, prompt, **fields).status_code == 200
        assert prompt_of(served) == prompt


def test_no_prompt_is_the_engines_to_refuse(shared: Running) -> None:
    for prompt in (None, "", []):
        response = ask(shared, prompt)
        assert response.status_code == 400
        assert error_of(response)["param"] == "prompt"


def test_context_keeps_room_for_the_answer(bench: Bench, shared: Running) -> None:
    """An answer without a limit is 16 tokens long, as in OpenAI's API."""
    one = {"rag": {"max_num_results": 1}}
    full = ask(shared, **one).json()["usage"]["prompt_tokens"]
    for spare, fields, status in [
        (8, {}, "miss"),
        (8, {"max_tokens": 0}, "hit"),
        (26, {}, "hit"),
        (26, {"max_tokens": 40}, "miss"),
    ]:
        with bench.serve(Script(answer=ANSWER, max_model_len=full + spare)) as running:
            answer = ask(running, **one, **fields).json()
            assert answer["rag"]["status"] == status, (spare, fields)
            assert answer["rag"].get("reason") == (None if status == "hit" else "no_room")
            assert (prompt_of(running) == QUESTION) == (status == "miss")


def test_a_prompt_that_is_too_long_has_openais_code(shared: Running) -> None:
    response = ask(shared, "word " * 5000)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_a_stream_is_the_golden_file(shared: Running, request: pytest.FixtureRequest) -> None:
    response, said = stream(shared, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-rag-status"] == "hit"
    normal = re.sub(r"cmpl-[0-9a-f]{32}", "cmpl-ID", normalised(said, shared.url))
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.write_text(normal)
    assert normal == GOLDEN.read_text()


def test_streamed_and_whole_say_the_same(shared: Running) -> None:
    whole = ask(shared, n=2).json()
    _, said = stream(shared, n=2)
    chunks = payloads(said)
    for key in ("id", "created", "model", "object"):
        assert len({chunk[key] for chunk in chunks}) == 1
    for index in (0, 1):
        parts = [c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(parts) == whole["choices"][index]["text"]
    assert chunks[0]["rag"]["search_results"] == whole["rag"]["search_results"]
    assert "cited" not in chunks[0]["rag"]
    assert not any("rag" in chunk for chunk in chunks[1:])


def test_a_plain_stream_is_the_engines(served: Running) -> None:
    _, said = stream(served, model="gpt-4o-mini", stream_options={"include_usage": True})
    chunks = payloads(said)
    assert {chunk["model"] for chunk in chunks} == {"gpt-4o-mini"}
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == ANSWER
    assert "rag" not in said
    assert said.endswith("data: [DONE]\n\n")


def test_a_quiet_stream_is_kept_alive(bench: Bench) -> None:
    script = Script(answer="late", prefill_seconds=0.3)
    with bench.serve(script, keep_alive_seconds=0.05) as running:
        _, said = stream(running)
        chunks = payloads(said)
        assert [chunk["choices"][0]["text"] for chunk in chunks][:3] == ["", "", ""]
        assert chunks[-1]["choices"][0]["text"] == "late"


def test_a_failure_in_a_stream_is_an_event(bench: Bench) -> None:
    with bench.serve(Script(answer="a b c d e", fail="midstream")) as running:
        for fields in ({}, OFF):
            _, said = stream(running, **fields)
            assert said.endswith("\n\n")
            assert payloads(said)[-1]["error"]["code"] == "engine_error"
            assert "[DONE]" not in said


def test_leaving_a_stream_frees_the_engine(bench: Bench) -> None:
    with bench.serve(Script(answer="word " * 500, token_seconds=0.05)) as running:
        body = text(stream=True, max_tokens=500)
        with running.client.stream("POST", ROUTE, json=body) as response:
            next(response.iter_lines())
        eventually(lambda: bool(running.engine.seen.aborted))
        eventually(lambda: running.metric("requests_in_flight", route=ROUTE) == 0)


class Broken:
    """A vector store that is down."""

    async def query(self, *_: Any) -> Any:
        raise StoreUnavailable("Chroma is down")


def test_on_error_fail(bench: Bench) -> None:
    with bench.serve(dense=Broken()) as running:
        hybrid = {"embedding_weight": 1.0, "text_weight": 0.0}
        rag: dict[str, Any] = {"ranking_options": {"hybrid_search": hybrid}}
        answer = ask(running, [QUESTION, TEA], rag=rag).json()
        assert (answer["rag"]["status"], answer["rag"]["reason"]) == ("degraded", "unavailable")
        assert prompt_of(running) == [QUESTION, TEA]
        response = ask(running, [QUESTION, TEA], rag={**rag, "on_error": "fail"})
        assert (response.status_code, error_of(response)["code"]) == (503, "retrieval_failed")


def test_anothers_store_is_not_found(bench: Bench) -> None:
    keys = ["acme:sk-acme", "globex:sk-globex"]
    with bench.serve(api_keys=keys, key="sk-acme") as running:
        found = ask(running, "Which word opens the vault?", model="scripted@acme-docs")
        assert found.headers["x-rag-status"] == "hit"
        for fields in (
            {"model": "scripted@globex-docs"},
            {"rag": {"vector_store_ids": ["globex-docs"]}},
        ):
            response = ask(running, "Which word opens the vault?", **fields)
            assert (response.status_code, error_of(response)["code"]) == (404, "store_not_found")
        assert len(running.engine.seen.bodies) == 1


def test_a_tenants_salt_reaches_the_engine(bench: Bench) -> None:
    with bench.serve(api_keys=["sk-a"], key="sk-a") as running:
        assert ask(running, model="scripted").status_code == 200
        assert running.engine.seen.bodies[-1]["cache_salt"]


def test_a_repeated_request_gets_the_same_answer(bench: Bench) -> None:
    with bench.serve(answer_cache_entries=10) as running:
        first, again = (ask(running, temperature=0) for _ in range(2))
        assert again.headers["x-rag-cached"] == "answer"
        assert again.json()["choices"] == first.json()["choices"]
        assert again.json()["id"] != first.json()["id"]
        # The same words as a chat are another request.
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": "scripted@docs", "messages": messages, "temperature": 0}
        chat = running.client.post("/v1/chat/completions", json=body)
        assert "x-rag-cached" not in chat.headers


def test_it_is_counted_under_its_route(served: Running) -> None:
    ask(served)
    labels = {"route": ROUTE, "outcome": "ok", "grounded": "true"}
    assert served.metric("request_duration_seconds_count", **labels) == 1
    assert served.metric("retrievals_total", status="hit") == 1

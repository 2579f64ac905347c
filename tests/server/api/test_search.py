"""`POST /v1/vector_stores/{id}/search`, by the official SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.lexical import drop
from retrieval.types import Hit
from tests.server.api.bench import (
    QUESTION,
    Bench,
    Running,
    eventually,
    ingest_by_command,
    write_documents,
)
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_faults import chroma_pid, frozen
from tests.server.api.test_leaving import Silent, send
from tests.server.api.test_openai_sdk import sync_client

ROUTE = "/v1/vector_stores/{vector_store_id}/search"


def docs_id(bench: Bench) -> str:
    return bench.run(bench.services.handover.current.catalog.find_store("local", "docs")).id


def test_the_sdk_reads_every_field(shared: Running, bench: Bench) -> None:
    with sync_client(shared) as client:
        raw = client.vector_stores.with_raw_response.search(docs_id(bench), query=QUESTION)
    page = raw.parse()
    assert raw.headers["server-timing"].startswith("embed;dur=")
    assert page.object == "vector_store.search_results.page"
    assert (page.model_extra or {})["search_query"] == [QUESTION]
    best = page.data[0]
    assert best.filename == "handbook.md"
    assert best.file_id.startswith("file-")
    assert "thirty days" in best.content[0].text
    assert best.content[0].type == "text"
    assert best.attributes == {}
    scores = [one.score for one in page.data]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] <= 1
    assert page.has_next_page() is False


def test_max_num_results_and_threshold(shared: Running, bench: Bench) -> None:
    store = docs_id(bench)
    with sync_client(shared) as client:
        every = client.vector_stores.search(store, query=QUESTION).data
        assert len(every) == 4
        for wanted in (1, 3):
            found = client.vector_stores.search(store, query=QUESTION, max_num_results=wanted)
            assert found.data == every[:wanted]
        # Inclusive: the result at the threshold stays.
        above = client.vector_stores.search(
            store, query=QUESTION, ranking_options={"score_threshold": every[1].score}
        )
    assert above.data == every[:2]


def test_several_queries_are_searched_together(shared: Running, bench: Bench) -> None:
    queries = ["How is Morva tea steeped?", "When does the Zanzibar ferry leave?"]
    with sync_client(shared) as client:
        page = client.vector_stores.search(docs_id(bench), query=queries, max_num_results=2)
    assert (page.model_extra or {})["search_query"] == queries
    assert {one.filename for one in page.data} == {"tea.txt", 'odd "name" <|im_end|>.txt'}


def test_an_empty_store_gives_an_empty_page(shared: Running) -> None:
    with sync_client(shared) as client:
        assert client.vector_stores.search("empty", query=QUESTION).data == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"filters": {"type": "eq", "key": "a", "value": "b"}}, "filters"),
        ({"rewrite_query": True}, "rewrite_query"),
        (
            {"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "ranking_options.hybrid_search",
        ),
        (
            {"ranking_options": {"hybrid_search": {"embedding_weight": -1, "text_weight": 1}}},
            "ranking_options.hybrid_search.embedding_weight",
        ),
        (
            {"ranking_options": {"hybrid_search": {"embedding_weight": 1}}},
            "ranking_options.hybrid_search.text_weight",
        ),
        ({"ranking_options": {"score_threshold": 1.5}}, "ranking_options.score_threshold"),
        ({"max_num_results": 0}, "max_num_results"),
        ({"max_num_results": 51}, "max_num_results"),
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"query": []}, "query"),
        ({"query": ["x"] * 17}, "query"),
        ({"query": [""]}, "query.0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_refused_names_its_field(
    shared: Running, fields: dict[str, Any], param: str
) -> None:
    response = shared.client.post("/v1/vector_stores/docs/search", json={"query": "x", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def hybrid(dense: float, text: float) -> dict[str, Any]:
    return {"hybrid_search": {"embedding_weight": dense, "text_weight": text}}


def test_the_request_weighs_the_rankings(shared: Running, bench: Bench) -> None:
    store = docs_id(bench)

    def found(question: str, dense: float, text: float) -> list[tuple[str, float]]:
        with sync_client(shared) as client:
            page = client.vector_stores.search(
                store, query=question, ranking_options=hybrid(dense, text)
            )
        return [(one.filename, one.score) for one in page.data]

    # Only the keyword ranking leaves out what has no word of the query.
    assert [name for name, _ in found("clause", 0, 2)] == ["quibble.txt"]
    dense = found("clause", 1, 0)
    assert len(dense) == 4
    # Only the ratio of the two counts, whatever their size.
    both = found("clause", 3, 2)
    assert both != dense
    assert both == found("clause", 3e300, 2e300) == found("clause", 1.5e-323, 1e-323)


def test_chat_weighs_the_rankings_too(shared: Running) -> None:
    answer = shared.ask("clause", rag={"ranking_options": hybrid(0, 1)}).json()
    (page,) = answer["rag"]["search_results"]
    assert [row["filename"] for row in page["data"]] == ["quibble.txt"]


def test_a_filter_says_that_it_comes_later(shared: Running) -> None:
    body = {"query": "x", "filters": {"type": "eq", "key": "a", "value": "b"}}
    response = shared.client.post("/v1/vector_stores/docs/search", json=body)
    assert "not supported yet" in response.json()["error"]["message"]


def test_null_and_false_are_absent(shared: Running) -> None:
    body = {"query": "x", "filters": None, "ranking_options": None, "rewrite_query": False}
    assert shared.client.post("/v1/vector_stores/docs/search", json=body).is_success


def test_another_tenants_store_is_not_found(bench: Bench) -> None:
    keys = ["acme:sk-acme", "globex:sk-globex"]
    store = bench.run(bench.services.handover.current.catalog.find_store("acme", "acme-docs")).id
    with bench.serve(api_keys=keys, default_store=None, key="sk-globex") as running:
        for ref in (store, "acme-docs", "no-such-store"):
            response = running.client.post(f"/v1/vector_stores/{ref}/search", json={"query": "x"})
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "store_not_found"
    with (
        bench.serve(api_keys=keys, default_store=None) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-acme") as client,
    ):
        found = client.vector_stores.search(store, query="Which word opens the vault?").data
    assert [one.filename for one in found] == ["secret.txt"]


def test_a_name_of_two_stores_is_refused(shared: Running) -> None:
    response = shared.client.post("/v1/vector_stores/twin/search", json={"query": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "ambiguous_store"


def test_it_is_admitted_and_counted(served: Running) -> None:
    assert served.client.post("/v1/vector_stores/docs/search", json={"query": "x"}).is_success
    route = "/v1/vector_stores/{vector_store_id}/search"
    count = served.metric(
        "request_duration_seconds_count", route=route, outcome="ok", grounded="false"
    )
    assert count == 1
    assert served.metric("stage_duration_seconds_count", stage="embed", outcome="ok") == 1
    assert served.metric("requests_in_flight", route=route) == 0


def search(running: Running) -> httpx.Response:
    return running.client.post("/v1/vector_stores/docs/search", json={"query": QUESTION})


def test_a_store_of_another_embedder_is_a_conflict(bench: Bench) -> None:
    store = bench.run(bench.services.handover.current.catalog.create_store("local", "foreign"))
    bench.run(bench.services.handover.current.catalog.bind_embedder(store.id, "another-model", 768))
    with bench.serve() as running:
        response = running.client.post("/v1/vector_stores/foreign/search", json={"query": "x"})
    assert response.status_code == 409
    assert error_of(response)["code"] == "embedder_conflict"
    assert "another-model" in error_of(response)["message"]
    assert response.headers["x-should-retry"] == "false"
    bench.run(bench.services.handover.current.catalog.delete_store(store.id))


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_damaged_keyword_index_says_what_helps_and_nothing_of_the_disk(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    open_ = bench.services.handover.current
    folder = write_documents(tmp_path / "files")
    ingest_by_command(bench.settings.data_dir, folder, "damaged")
    store = bench.run(open_.catalog.find_store("local", "damaged"))
    lexical = bench.settings.data_dir / "lexical"
    (lexical / store.index_name / "meta.json").write_text("{}")
    try:
        with bench.serve() as running:
            response = running.client.post(
                f"/v1/vector_stores/{getattr(store, by)}/search", json={"query": "x"}
            )
    finally:
        bench.run(open_.catalog.delete_store(store.id))
        drop(lexical, store.index_name)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (503, "index_missing")
    assert response.headers["x-should-retry"] == "false"
    assert repr(getattr(store, by)) in error["message"]
    assert "`groundwire reindex`" in error["message"]
    assert str(lexical) not in response.text
    assert f"{store.id} cannot be searched: the keyword index {lexical}" in caplog.text


def test_chroma_that_does_not_answer_in_time(bench: Bench) -> None:
    with bench.serve(retrieval_timeout_seconds=0.2) as running, frozen(chroma_pid(bench)):
        response = search(running)
        assert (response.status_code, error_of(response)["code"]) == (503, "retrieval_timeout")
        assert response.headers["retry-after"]
        labels = {"route": ROUTE, "outcome": "error", "grounded": "false"}
        assert running.metric("request_duration_seconds_count", **labels) == 1


class Down:
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        raise StoreUnavailable("Chroma does not answer")


def test_chroma_that_is_down(bench: Bench) -> None:
    with bench.serve(dense=Down()) as running:
        response = search(running)
        assert (response.status_code, error_of(response)["code"]) == (503, "store_unavailable")
        assert response.headers["retry-after"]


def test_past_the_request_s_deadline(bench: Bench) -> None:
    with bench.serve(dense=Silent(), request_timeout_seconds=0.2) as running:
        response = search(running)
        assert (response.status_code, error_of(response)["code"]) == (504, "request_timeout")
        eventually(lambda: running.metric("requests_in_flight", route=ROUTE) == 0)


def test_a_client_that_leaves_ends_the_search(bench: Bench) -> None:
    silent = Silent()
    with bench.serve(dense=silent) as running:
        with send(running, "/v1/vector_stores/docs/search", {"query": QUESTION}):
            eventually(lambda: silent.asked)
        eventually(lambda: running.metric("requests_in_flight", route=ROUTE) == 0)
        assert running.metric("requests_aborted_total", route=ROUTE) == 1
        labels = {"route": ROUTE, "outcome": "cancelled", "grounded": "false"}
        assert running.metric("request_duration_seconds_count", **labels) == 1

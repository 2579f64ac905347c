"""`POST /v1/vector_stores/{id}/search`, by the official SDK."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.api.bench import QUESTION, Bench, Running
from tests.server.api.test_openai_sdk import sync_client


def docs_id(bench: Bench) -> str:
    return bench.run(bench.services.catalog.find_store("local", "docs")).id


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
            {"ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 1}}},
            "ranking_options.hybrid_search",
        ),
        ({"ranking_options": {"score_threshold": 1.5}}, "ranking_options.score_threshold"),
        ({"max_num_results": 0}, "max_num_results"),
        ({"max_num_results": 51}, "max_num_results"),
        ({"query": ""}, "query.0"),
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


def test_a_filter_says_that_it_comes_later(shared: Running) -> None:
    body = {"query": "x", "filters": {"type": "eq", "key": "a", "value": "b"}}
    response = shared.client.post("/v1/vector_stores/docs/search", json=body)
    assert "not supported yet" in response.json()["error"]["message"]


def test_null_and_false_are_absent(shared: Running) -> None:
    body = {"query": "x", "filters": None, "ranking_options": None, "rewrite_query": False}
    assert shared.client.post("/v1/vector_stores/docs/search", json=body).is_success


def test_another_tenants_store_is_not_found(bench: Bench) -> None:
    keys = ["acme:sk-acme", "globex:sk-globex"]
    store = bench.run(bench.services.catalog.find_store("acme", "acme-docs")).id
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

"""Caches in the whole server: what a repeated question shows, and what a write makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.types import Hit
from tests.server.api.bench import (
    Bench,
    Running,
    ingest_by_command,
    write_documents,
)

ON = {"retrieval_cache_entries": 100, "embedding_cache_entries": 100}
RETRIEVAL_STAGES = {"embed", "lexical", "search", "fuse"}


@pytest.fixture
def caching(bench: Bench) -> Iterator[Running]:
    with bench.serve(**ON) as running:
        yield running


def requests(running: Running, cache: str) -> dict[str, float]:
    results = ("hit", "miss", "shared")
    return {r: running.metric("cache_requests_total", cache=cache, result=r) for r in results}


def test_a_repeated_question_is_not_searched_for_again(caching: Running) -> None:
    first, again = caching.ask(), caching.ask()
    assert "cached" not in first.json()["rag"]
    assert "x-rag-cached" not in first.headers
    assert set(first.json()["rag"]["timings_ms"]) >= RETRIEVAL_STAGES
    rag = again.json()["rag"]
    assert rag["cached"] == ["retrieval"]
    assert again.headers["x-rag-cached"] == "retrieval"
    assert not RETRIEVAL_STAGES & set(rag["timings_ms"])
    assert "embed" not in again.headers["server-timing"]
    assert rag["search_results"] == first.json()["rag"]["search_results"]
    assert again.json()["id"] != first.json()["id"]
    prompts = [body["messages"] for body in caching.engine.seen.bodies]
    assert prompts[0] == prompts[1]
    assert requests(caching, "retrieval") == {"hit": 1, "miss": 1, "shared": 0}
    searches = caching.metric("stage_duration_seconds_count", stage="search", outcome="ok")
    assert searches == 1
    assert caching.metric("cache_entries", cache="retrieval") == 1
    assert caching.metric("cache_size_bytes", cache="retrieval") > 500


def test_another_number_of_passages_needs_a_search_and_no_embedding(caching: Running) -> None:
    caching.ask()
    rag = caching.ask(rag={"max_num_results": 2}).json()["rag"]
    assert rag["cached"] == ["embedding"]
    assert "search" in rag["timings_ms"]
    assert "embed" not in rag["timings_ms"]
    assert requests(caching, "embedding") == {"hit": 1, "miss": 1, "shared": 0}


def test_an_ingest_by_another_process_is_in_the_next_answer(
    caching: Running, bench: Bench, tmp_path: Path
) -> None:
    def sources(text: str) -> list[str]:
        folder = write_documents(tmp_path / text, {"news.md": f"The quagga eats {text}.\n"})
        (folder / "news.md").rename(tmp_path / "news.md")
        ingest_by_command(bench.settings.data_dir, tmp_path / "news.md", "news")
        found = []
        for _ in range(2):
            answer = caching.ask(
                "What does the quagga eat?",
                rag={"vector_store_ids": ["news"], "include_text": True},
            ).json()
            found.append(answer["rag"])
        assert [rag.get("cached") for rag in found][1] == ["retrieval"]
        assert "retrieval" not in found[0].get("cached", [])
        data = found[0]["search_results"][0]["data"]
        return [row["content"][0]["text"] for row in data]

    assert sources("hay") == ["The quagga eats hay."]
    assert sources("rice") == ["The quagga eats rice."]


class Broken:
    """Chroma, out of order until it is mended."""

    mended = False

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        if not self.mended:
            raise StoreUnavailable("out of order")
        return []


def test_a_failure_is_not_remembered(bench: Bench) -> None:
    broken = Broken()
    with bench.serve(dense=broken, **ON) as running:
        for _ in range(2):
            assert running.ask().headers["x-rag-status"] == "degraded"
        broken.mended = True
        assert running.ask().headers["x-rag-status"] == "hit"
        assert requests(running, "retrieval") == {"hit": 0, "miss": 3, "shared": 0}


def test_equal_questions_of_two_tenants_are_two(bench: Bench) -> None:
    keys = ["acme:a-key", "globex:g-key"]
    with bench.serve(api_keys=keys, default_store=None, **ON) as running:
        for tenant, key in (("acme", "a-key"), ("globex", "g-key")):
            answer = running.ask(
                "What word opens the vault?",
                headers={"authorization": f"Bearer {key}"},
                rag={"vector_store_ids": [f"{tenant}-docs"], "include_text": True},
            ).json()
            (row,) = answer["rag"]["search_results"][0]["data"]
            assert f"{tenant}-quibble" in row["content"][0]["text"]
            assert "retrieval" not in answer["rag"].get("cached", [])

"""Stores adopted from a Chroma server that is not ours: found, searched, cited, and never written to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.errors import DimensionMismatch, StoreUnavailable
from server.canary import Canary, canary_settings
from server.ingestion import IngestError, IngestJob, ReindexJob, ingest_paths, reindex_stores
from tests.server.api.adopting import QUAGGA, TEXTS, Elsewhere, open_elsewhere, search, texts
from tests.server.api.bench import GROUNDWIRE, Bench, Running

QUESTION = "When did the quagga graze?"
DENSE = {"ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}}


@pytest.fixture(scope="module")
def elsewhere(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with open_elsewhere(bench, tmp_path_factory.mktemp("elsewhere")) as opened:
        yield opened


def groundwire(bench: Bench, *arguments: object) -> Any:
    return subprocess.run(
        [GROUNDWIRE, *map(str, arguments)],
        env={**os.environ, "GROUNDWIRE_DATA_DIR": str(bench.settings.data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_adopts_and_the_server_finds_and_cites(
    elsewhere: Elsewhere, shared: Running
) -> None:
    elsewhere.fill("zoo", page=2)
    done = groundwire(
        elsewhere.bench, "adopt", "zoo", "--chroma", elsewhere.url, "--json",
        "--embedder", "all-MiniLM-L6-v2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["passages"], report["files"]) == (4, 4, 3)
    assert report["agreement"] > 0.99

    found = search(shared, "zoo", QUESTION)
    first = found.json()["data"][0]
    assert texts(found)[0] == QUAGGA
    assert (first["filename"], first["attributes"]) == ("quagga.pdf", {"page": 3})
    models = [model["id"] for model in shared.client.get("/v1/models").json()["data"]]
    assert any(model.endswith("@zoo") for model in models)

    answer = shared.ask(QUESTION, rag={"vector_store_ids": ["zoo"], "max_num_results": 1}).json()
    assert QUAGGA in shared.prompt
    assert answer["rag"]["status"] == "hit"
    note = answer["choices"][0]["message"]["annotations"][0]["url_citation"]
    assert note["title"] == "quagga.pdf, p. 3"
    passage = shared.client.get(note["url"]).json()
    assert (passage["text"], passage["page"]) == (QUAGGA, 3)
    assert shared.client.get(note["url"].rpartition("/")[0] + "/1").status_code == 404

    asked = groundwire(elsewhere.bench, "search", QUESTION, "--store", "zoo", "--json")
    assert json.loads(asked.stdout)["hits"][0]["text"] == QUAGGA


def test_the_canary_asks_of_it(elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.fill("watched-zoo")
    elsewhere.adopt("watched-zoo")
    there = {"text": QUESTION, "file": "quagga.pdf", "passage": "grazed at dawn"}
    rows = (there, {"text": "Where do dodos graze?", "file": "dodo.pdf"})
    path = tmp_path / "golden.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = elsewhere.bench.settings.model_copy(
        update={"canary_file": path, "canary_store": "watched-zoo"}
    )
    wanted = canary_settings(settings)
    assert wanted is not None
    # Its keywords are in an index of ours and would be found without its vectors.
    with elsewhere.bench.serve(lexical_weight=0.0) as running:
        canary = Canary(running.services.handover, running.services.metrics, wanted)
        elsewhere.bench.run(canary.look())
        catalog = running.services.handover.current.catalog
        store = elsewhere.bench.run(catalog.find_store("local", "watched-zoo"))

        def shown(name: str, **labels: str) -> float:
            """By the store's id where other tests have made stores of another tenant, else by its name."""
            return sum(running.metric(name, store=by, **labels) for by in (store.id, store.name))

        assert shown("canary_recall", k="1") == 0.5
        assert shown("canary_questions", outcome="gone") == 1


@pytest.mark.parametrize(("space", "length"), [("cosine", 1), ("l2", 1), ("ip", 1), ("l2", 3)])
def test_every_distance_becomes_the_cosine(
    elsewhere: Elsewhere, shared: Running, space: str, length: float
) -> None:
    name = f"{space}-{length}"
    embed = elsewhere.embedder.embed_passages
    elsewhere.fill(name, space=space, made=lambda texts: embed(texts) * np.float32(length))
    elsewhere.adopt(name)
    best = search(shared, name, QUESTION, **DENSE).json()["data"][0]
    cosine = elsewhere.embedder.embed_queries([QUESTION])[0] @ embed([QUAGGA])[0]
    assert best["content"][0]["text"] == QUAGGA
    assert best["score"] == pytest.approx(float(cosine), abs=1e-3)


def test_nothing_here_writes_to_it(elsewhere: Elsewhere, tmp_path: Path) -> None:
    collection, bench = elsewhere.fill("sealed"), elsewhere.bench
    elsewhere.adopt("sealed")
    data_dir, catalog_url = bench.settings.data_dir, bench.settings.resolved_catalog_url
    ingest = IngestJob((tmp_path,), "sealed", data_dir, catalog_url)
    with pytest.raises(IngestError, match="read-only: it was adopted from 'sealed'"):
        bench.run(ingest_paths(ingest, elsewhere.embedder))
    reindex = ReindexJob(("sealed",), data_dir, catalog_url)
    with pytest.raises(IngestError, match=r"no bytes here.*groundwire adopt"):
        bench.run(reindex_stores(reindex, elsewhere.embedder))
    assert collection.count() == len(TEXTS)


def test_a_name_with_files_of_its_own_is_refused(elsewhere: Elsewhere) -> None:
    elsewhere.fill("docs")
    with pytest.raises(IngestError, match=r"'docs' holds files of its own.*--store"):
        elsewhere.adopt("docs")


def test_a_mismatch_is_refused_with_both_numbers(elsewhere: Elsewhere) -> None:
    elsewhere.fill("narrow", made=lambda texts: np.ones((len(texts), 32), np.float32))
    with pytest.raises(DimensionMismatch, match=r"32 dimensions.*384"):
        elsewhere.adopt("narrow")


def test_vectors_of_another_model_of_this_size_are_refused(elsewhere: Elsewhere) -> None:
    noise = np.random.default_rng(3).standard_normal((len(TEXTS), 384)).astype(np.float32)
    elsewhere.fill("noise", made=lambda _: noise)
    with pytest.raises(IngestError, match="not those that 'all-MiniLM-L6-v2' makes"):
        elsewhere.adopt("noise")


def test_texts_that_are_somewhere_else_are_asked_for(elsewhere: Elsewhere) -> None:
    elsewhere.fill("bodies")
    with pytest.raises(IngestError, match=r"'body'.*--text-field.*page, source"):
        elsewhere.adopt("bodies", text_field="body")
    with pytest.raises(StoreUnavailable, match="no collection named 'nowhere'"):
        elsewhere.adopt("nowhere")


def test_adopting_again_follows_the_collection(elsewhere: Elsewhere, shared: Running) -> None:
    collection = elsewhere.fill("moving")
    elsewhere.adopt("moving")
    assert QUAGGA in texts(search(shared, "moving", QUESTION))
    assert elsewhere.complaint("moving") is None
    collection.delete(ids=[str(hash(QUAGGA))])
    elsewhere.fill("moving", {"A second ferry to Pemba leaves on Sundays.": "/trade/ferry.md"})
    elsewhere.fill("moving", {"A third one to Mafia leaves on Fridays.": "/trade/ferry.md"})
    assert "holds 5 rows, and 4 when" in (elsewhere.complaint("moving") or "")
    report = elsewhere.adopt("moving")
    assert (report.rows, report.passages) == (5, 5)
    assert QUAGGA not in texts(search(shared, "moving", QUESTION))
    assert "Pemba" in texts(search(shared, "moving", "ferry to Pemba"))[0]
    assert elsewhere.complaint("moving") is None
    kept = [path.name for path in (elsewhere.bench.settings.data_dir / "lexical").iterdir()]
    assert [name for name in kept if name.startswith(report.store_id)] == [f"{report.store_id}.2"]


def test_a_collection_whose_vectors_changed_since_says_so_and_the_others_go_on(
    elsewhere: Elsewhere, shared: Running
) -> None:
    elsewhere.fill("changed")
    elsewhere.fill("steady")
    elsewhere.adopt("changed")
    elsewhere.adopt("steady")
    assert search(shared, "changed", QUESTION).status_code == 200
    elsewhere.client.delete_collection("changed")
    elsewhere.fill("changed", made=lambda texts: np.ones((len(texts), 32), np.float32))
    before = search(shared, "changed", QUESTION)
    assert "32 dimensions and 'all-MiniLM-L6-v2' makes 384" in (
        elsewhere.complaint("changed") or ""
    )
    for response in (before, search(shared, "changed", QUESTION)):
        assert response.status_code == 409
        error = response.json()["error"]
        assert error["code"] == "dimension_mismatch"
        assert "32" in error["message"]
        assert "384" in error["message"]
    answer = shared.ask(QUESTION, rag={"vector_store_ids": ["changed"]}).json()
    assert answer["rag"]["status"] == "degraded"
    assert texts(search(shared, "steady", QUESTION))[0] == QUAGGA

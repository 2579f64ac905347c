"""The canary beside a server: what it sees of the index, and what nobody else sees of it."""

from __future__ import annotations

import json
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from retrieval.embed import Embedder
from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.types import Hit
from server.canary import Canary, canary_settings
from server.embedding import open_embedder
from server.engine.scripted import ScriptedEngine
from server.ingestion import IngestJob, ingest_paths, publish_paths
from server.services import open_services
from server.settings import Settings, SettingsError
from server.telemetry.metrics import Metrics
from tests.retrieval.search.search_support import eventually
from tests.server.api.bench import Bench, Running, write_documents

LOANS = {"text": "How long may a loan last?", "file": "handbook.md", "heading": "Loans"}
TEA = {"text": "How is Morva tea steeped?", "file": "tea.txt"}
ON = {"retrieval_cache_entries": 100, "embedding_cache_entries": 100}


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Breakable:
    """The real vectors, out of order when `broken`; `first` is done before the next search."""

    def __init__(self, bench: Bench) -> None:
        self._vectors = bench.services.handover.current.vectors
        self.broken = False
        self.first = lambda: None

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        first, self.first = self.first, lambda: None
        first()
        if self.broken:
            raise StoreUnavailable("out of order")
        return await self._vectors.query(store_id, vector, k)


@dataclass
class Watched:
    """A canary over an app, looked through by hand."""

    bench: Bench
    running: Running
    canary: Canary
    clock: Clock

    def look(self) -> None:
        self.bench.run(self.canary.look())

    def runs(self, outcome: str = "ok") -> float:
        return self.running.metric("canary_runs_total", outcome=outcome)

    def id_of(self, store: str) -> str:
        """The store's id, which is its label: the bench has stores of several tenants."""
        catalog = self.bench.services.handover.current.catalog
        return self.bench.run(catalog.find_store("local", store)).id

    def of_store(self, name: str, store: str, **labels: str) -> float:
        return self.running.metric(f"canary_{name}", store=self.id_of(store), **labels)

    def recall(self, store: str, k: int = 4) -> float:
        return self.of_store("recall", store, k=str(k))

    def questions(self, store: str) -> dict[str, float]:
        return {
            outcome: self.of_store("questions", store, outcome=outcome)
            for outcome in ("found", "missed", "gone")
        }


def golden(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "golden.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def watch(bench: Bench, running: Running, path: Path, **settings: object) -> Watched:
    given = {**bench.settings.model_dump(exclude_unset=True), "canary_file": path, **settings}
    wanted = canary_settings(Settings(**given))
    assert wanted is not None
    clock = Clock()
    services = running.services
    return Watched(
        bench, running, Canary(services.handover, services.metrics, wanted, clock), clock
    )


@pytest.fixture(scope="module")
def embedder(bench: Bench) -> Embedder:
    return open_embedder(bench.settings, lambda _: None)


def ingest(bench: Bench, embedder: Embedder, folder: Path, store: str) -> None:
    settings = bench.settings
    job = IngestJob((folder,), store, settings.data_dir, settings.resolved_catalog_url, prune=True)
    assert bench.run(ingest_paths(job, embedder)).ok


def test_a_removed_document_is_seen_when_the_index_has_come_to_rest(
    bench: Bench, embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_documents(tmp_path / "docs")
    ingest(bench, embedder, folder, "watched")
    began = time.time()
    with bench.serve(**ON) as running:
        watched = watch(
            bench, running, golden(tmp_path, LOANS, TEA), canary_store="watched", canary_min_recall=0.8
        )  # fmt: skip
        watched.look()
        assert watched.runs() == 1
        assert [watched.recall("watched", k) for k in (1, 4, 10)] == [1, 1, 1]
        assert watched.of_store("mrr", "watched") == 1
        assert watched.questions("watched") == {"found": 2, "missed": 0, "gone": 0}
        assert running.metric("canary_period_seconds") == 300
        assert running.metric("canary_min_recall") == 0.8
        last = watched.of_store("last_run_timestamp_seconds", "watched")
        assert began <= last <= time.time()
        assert running.metric("canary_duration_seconds_count") == 2
        watched.look()
        watched.look()
        assert watched.runs() == 1
        assert "canary" not in caplog.text

        (folder / "tea.txt").unlink()
        ingest(bench, embedder, folder, "watched")
        watched.look()
        assert watched.runs() == 1  # it may be moving still
        watched.look()
        assert (watched.runs(), watched.recall("watched")) == (2, 0.5)
        assert watched.of_store("mrr", "watched") == 0.5
        assert watched.questions("watched") == {"found": 1, "missed": 0, "gone": 1}
        assert "1 of 2 canary questions" in caplog.text
        assert "(tea.txt)" in caplog.text
        assert "recall at 4 of the store 'watched' is 0.500, below canary_min_recall" in caplog.text
        caplog.clear()
        watched.clock.now += 301
        watched.look()
        assert watched.runs() == 3
        assert "canary" not in caplog.text  # it was said

        # Nothing of all this was a request's, or changed anything for one.
        for cache in ("embedding", "retrieval", "conversation"):
            assert running.metric("cache_entries", cache=cache) == 0
            for result in ("hit", "miss", "shared"):
                assert running.metric("cache_requests_total", cache=cache, result=result) == 0
        assert running.metric("stage_duration_seconds_count", stage="search", outcome="ok") == 0
        assert not running.engine.seen.bodies

        (folder / "tea.txt").write_text("Morva tea is steeped for twelve minutes.")
        ingest(bench, embedder, folder, "watched")
        with caplog.at_level(logging.INFO, "server.canary"):
            watched.look()
            watched.look()
        assert watched.recall("watched") == 1
        assert "no longer below" in caplog.text


def test_a_chroma_that_is_away_is_an_error_and_the_values_stay(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = Breakable(bench)
    with bench.serve(dense=vectors) as running:
        watched = watch(bench, running, golden(tmp_path, LOANS, TEA))
        watched.look()
        last = watched.of_store("last_run_timestamp_seconds", "docs")
        assert (
            running.services.metrics.registry.get_sample_value("groundwire_canary_min_recall")
            is None
        )
        vectors.broken = True
        watched.clock.now += 301
        watched.look()
        assert (watched.runs("ok"), watched.runs("error")) == (1, 1)
        assert "could not ask its questions: out of order" in caplog.text
        assert watched.recall("docs") == 1
        assert watched.of_store("last_run_timestamp_seconds", "docs") == last
        watched.look()
        watched.look()
        assert watched.runs("error") == 1  # not again before it is time
        vectors.broken = False
        watched.clock.now += 301
        watched.look()
        assert watched.runs("ok") == 2


def test_a_run_that_is_overtaken_is_given_up_for_one_on_the_newer_version(
    bench: Bench, tmp_path: Path
) -> None:
    vectors = Breakable(bench)
    with bench.serve(dense=vectors) as running:
        watched = watch(bench, running, golden(tmp_path, LOANS, TEA))
        handover = running.services.handover
        newer = replace(handover.current, version=2)
        vectors.first = lambda: handover.to(newer, AsyncExitStack())
        watched.look()
        assert (watched.runs("ok"), watched.runs("error")) == (0, 0)
        assert running.metric("canary_duration_seconds_count") == 1
        watched.look()
        assert (watched.runs("ok"), watched.recall("docs")) == (1, 1)


def test_what_is_there_and_not_found_is_missed(bench: Bench, tmp_path: Path) -> None:
    rows = (LOANS, {**LOANS, "passage": "no such words"}, {"text": "Tea?", "passage": "Morva tea"})
    with bench.serve() as running:
        watched = watch(bench, running, golden(tmp_path, *rows), min_similarity=1.0)
        watched.look()
        # As for a request: nothing is near enough.
        assert watched.questions("docs") == {"found": 0, "missed": 2, "gone": 1}
        assert (watched.runs(), watched.recall("docs", 10)) == (1, 0)


def test_a_store_is_found_by_its_id_whoever_s_it_is(bench: Bench, tmp_path: Path) -> None:
    question = {"text": "What opens the acme vault?", "file": "secret.txt"}
    catalog = bench.services.handover.current.catalog
    store = bench.run(catalog.find_store("acme", "acme-docs"))
    with bench.serve() as running:
        watched = watch(bench, running, golden(tmp_path, question), canary_store=store.id)
        watched.look()
        assert running.metric("canary_recall", store=store.id, k="4") == 1
        page = running.client.get("/metrics").text
        assert store.id in page
        assert "acme-docs" not in page, "any tenant's key reads it"
        by_name = watch(bench, running, golden(tmp_path, question), canary_store="acme-docs")
        by_name.look()
        assert by_name.runs("error") == 1


def test_the_golden_file_is_read_anew(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = golden(tmp_path, LOANS)
    with bench.serve() as running:
        watched = watch(bench, running, path)
        watched.look()
        for rows, found in (((LOANS, TEA), 2), (({"text": "x"},), 2)):
            golden(tmp_path, *rows)
            watched.clock.now += 301
            watched.look()
            assert watched.questions("docs")["found"] == found
        assert watched.runs("error") == 1
        assert "golden.jsonl, line 1" in caplog.text


@pytest.mark.anyio
async def test_a_wrong_golden_file_stops_the_start(tmp_path: Path) -> None:
    missing = {"data_dir": tmp_path / "data", "canary_file": tmp_path / "golden.jsonl"}
    for settings, complaint in (
        (missing, "canary_file: needs canary_store"),
        ({**missing, "canary_store": "docs"}, r"canary_file: .*golden.jsonl: No such file"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            async with open_services(Settings(**settings), engine=ScriptedEngine()):
                pass


def recall(metrics: Metrics) -> float | None:
    labels = {"store": "docs", "k": "4"}
    return metrics.registry.get_sample_value("groundwire_canary_recall", labels)


@pytest.mark.anyio
async def test_a_server_asks_the_version_that_it_answers_from(
    embedder: Embedder, tmp_path: Path
) -> None:
    folder, published = write_documents(tmp_path / "docs"), tmp_path / "published"
    work = tmp_path / "work"
    job = IngestJob((folder,), "docs", work, "unused", prune=True)
    await publish_paths(job, embedder, published)
    settings = Settings(
        data_dir=tmp_path / "data", published_dir=published, published_poll_seconds=0.05,
        canary_file=golden(tmp_path, LOANS, TEA), canary_store="docs", canary_seconds=0.05,
    )  # fmt: skip
    async with open_services(settings, engine=ScriptedEngine()) as services:
        await eventually(lambda: recall(services.metrics) == 1.0)
        (folder / "tea.txt").unlink()
        await publish_paths(job, embedder, published)
        await eventually(lambda: recall(services.metrics) == 0.5)
        assert services.handover.current.version == 2

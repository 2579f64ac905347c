"""When Chroma or the engine fails: what the client hears, and that it is over when it is over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from retrieval.embed.base import Vectors
from retrieval.errors import DimensionMismatch
from retrieval.lexical import LexicalIndex
from retrieval.pipeline import DenseSearch
from retrieval.search.lease import Published
from retrieval.types import Hit
from server.adopted import Indexes
from server.answering import UNSEARCHED
from server.catalog import Catalog, Store
from server.catalog.database import CONNECTIONS
from server.engine.scripted import Script
from server.following import Following
from tests.server.api.bench import QUESTION, Bench, Running, eventually
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_chat import payloads


def chroma_pid(bench: Bench) -> int:
    """Our child's: the bench owns the only Chroma on its directory."""
    published = Published.read(bench.settings.data_dir)
    assert published is not None
    return published.pid


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def busy(bench: Bench, catalog: Catalog) -> Iterator[None]:
    """Who asks it waits: all its connections are taken."""

    async def take() -> list[AsyncConnection]:
        return [await catalog._engine.connect() for _ in range(CONNECTIONS)]

    async def give_back(taken: list[AsyncConnection]) -> None:
        for connection in taken:
            await connection.close()

    taken = bench.run(take())
    try:
        yield
    finally:
        bench.run(give_back(taken))


def check_degraded(running: Running, reason: str, streamed: bool) -> None:
    response = running.ask(stream=streamed)
    assert response.status_code == 200
    assert response.headers["x-rag-status"] == "degraded"
    rag = payloads(response.text)[0]["rag"] if streamed else response.json()["rag"]
    assert (rag["status"], rag["reason"]) == ("degraded", reason)
    assert rag["search_results"][0]["data"] == []
    assert "<sources>" not in running.prompt


def check_failed(running: Running, code: str, **fields: Any) -> None:
    response = running.ask(**fields)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (503, code)
    assert response.headers["retry-after"]


@pytest.mark.parametrize("streamed", [False, True])
def test_chroma_that_does_not_answer_is_a_timeout(bench: Bench, streamed: bool) -> None:
    with bench.serve(retrieval_timeout_seconds=0.2) as running:
        with frozen(chroma_pid(bench)):
            check_degraded(running, "timeout", streamed)
            check_failed(running, "retrieval_failed", rag={"on_error": "fail"}, stream=streamed)
            check_degraded(running, "timeout", streamed)
        eventually(lambda: running.metric("retrievals_total", status="degraded") == 3)
        stages = ("stage_duration_seconds_count", "search")
        assert running.metric(stages[0], stage=stages[1], outcome="timeout") == 3
        assert running.metric(stages[0], stage=stages[1], outcome="cancelled") == 0
    with bench.serve() as running:
        eventually(lambda: running.ask().headers["x-rag-status"] == "hit")


def test_the_server_may_say_fail_and_the_request_skip(bench: Bench) -> None:
    with bench.serve(retrieval_timeout_seconds=0.2, on_error="fail") as running:
        with frozen(chroma_pid(bench)):
            check_failed(running, "retrieval_failed")
            response = running.ask(rag={"on_error": "skip"})
            assert (response.status_code, response.headers["x-rag-status"]) == (200, "degraded")
            refuse = {"on_error": "skip", "on_empty": "refuse"}
            refused = running.ask(rag=refuse).json()["choices"][0]["message"]["content"]
            assert refused == UNSEARCHED
            *_, said, end = payloads(running.ask(rag=refuse, stream=True).text)
            assert said["choices"][0]["delta"]["content"] == UNSEARCHED
            assert end["choices"][0]["finish_reason"] == "stop"
        assert len(running.engine.seen.bodies) == 1


def search(running: Running, store: str = "docs") -> Any:
    return running.client.post(f"/v1/vector_stores/{store}/search", json={"query": QUESTION})


def test_a_catalog_that_does_not_answer_is_a_timeout(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.serve(retrieval_timeout_seconds=0.2) as running:
        with busy(bench, bench.services.handover.current.catalog):
            check_degraded(running, "timeout", False)
            check_failed(running, "retrieval_failed", rag={"on_error": "fail"})
            found = search(running)
        assert (found.status_code, error_of(found)["code"]) == (503, "retrieval_timeout")
        timed_out = {"stage": "plan", "outcome": "timeout"}
        assert running.metric("stage_duration_seconds_count", **timed_out) == 2
        assert "(stores: 'docs')" in caplog.text
    with bench.serve() as running:
        assert running.ask().headers["x-rag-status"] == "hit"


#: Of the half a second that retrieval may take in the tests below, what one of its parts does.
LIMIT_SECONDS, PART_SECONDS = 0.5, 0.3


class LateStores(Following):
    """Takes its time to bring each store up to date."""

    async def follow(self, store: Store, wait_seconds: float = 0.0) -> None:  # noqa: ARG002
        await asyncio.sleep(PART_SECONDS)


class LateSearch:
    """A vector store that takes its time."""

    def __init__(self, inner: DenseSearch, seconds: float = PART_SECONDS) -> None:
        self._inner = inner
        self._seconds = seconds

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        await asyncio.sleep(self._seconds)
        return await self._inner.query(store_id, vector, k)


@pytest.mark.parametrize(("stores", "late"), [(["docs", "empty"], False), (["docs"], True)])
def test_one_deadline_for_all_of_retrieval(
    bench: Bench, tmp_path: Path, stores: list[str], late: bool
) -> None:
    open_ = bench.services.handover.current
    indexes = Indexes(open_.indexes._sides, LateStores(open_.catalog, tmp_path))
    dense = LateSearch(open_.vectors) if late else None
    settings = {"retrieval_timeout_seconds": LIMIT_SECONDS}
    with bench.serve(dense=dense, indexes=indexes, **settings) as running:
        rag = running.ask(rag={"vector_store_ids": stores}).json()["rag"]
        assert (rag["status"], rag["reason"]) == ("degraded", "timeout")
        if late:
            assert error_of(search(running))["code"] == "retrieval_timeout"


def test_prompts_that_wait_for_their_turn_have_time_of_their_own(bench: Bench) -> None:
    dense = LateSearch(bench.services.handover.current.vectors, seconds=2 * PART_SECONDS)
    with bench.serve(dense=dense, retrieval_timeout_seconds=2 * LIMIT_SECONDS) as running:
        body = {"model": "scripted@docs", "prompt": [QUESTION] * 5}
        rag = running.client.post("/v1/completions", json=body).json()["rag"]
    assert all(page["data"] for page in rag["search_results"])


def test_a_copy_that_is_not_ready_in_time_goes_on(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_ = bench.services.handover.current
    docs = bench.run(open_.catalog.find_store("local", "docs"))
    elsewhere = bench.run(Catalog.open(bench.settings.resolved_catalog_url))
    following = Following(elsewhere, tmp_path / "lexical")
    indexes = Indexes(open_.indexes._sides, following)
    with bench.serve(indexes=indexes, retrieval_timeout_seconds=0.2) as running:
        with busy(bench, elsewhere):
            check_degraded(running, "timeout", False)
            found = search(running)
        assert error_of(found)["code"] == "retrieval_timeout"
        assert "still being opened" in error_of(found)["message"]
        assert f"(stores: {docs.id})" in caplog.text
        copied = LexicalIndex(tmp_path / "lexical")
        eventually(lambda: copied.count(docs.index_name) > 0)
        eventually(lambda: running.ask().headers["x-rag-status"] == "hit")
    bench.run(following.close())
    bench.run(elsewhere.close())


class Broken:
    """A vector store whose rows another embedder made."""

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        raise DimensionMismatch("the store has 768 dimensions and the embedder 384")


def test_any_failure_of_retrieval_follows_on_error(bench: Bench) -> None:
    with bench.serve(dense=Broken()) as running:
        check_degraded(running, "unavailable", False)
        response = running.ask(rag={"on_error": "fail"})
        assert response.status_code == 503
        assert "on_error" in error_of(response)["message"]
        assert "768" not in response.text, "internals are for the log"


class Bug:
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        raise RuntimeError("secret detail")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_bug_is_a_500_without_internals(bench: Bench, streamed: bool) -> None:
    with bench.serve(dense=Bug()) as running:
        response = running.ask(stream=streamed)
        error = error_of(response)
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in error["message"]
        assert response.headers["x-should-retry"] == "false"
        eventually(lambda: running.in_flight == 0)


def test_ready_and_alive(shared: Running) -> None:
    assert shared.client.get("/health").json() == {"status": "ok"}
    ready = shared.client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


def test_a_dead_engine_is_not_ready(bench: Bench) -> None:
    with bench.serve() as running:
        running.engine.script = replace(running.engine.script, fail="dead")
        ready = running.client.get("/ready")
        assert ready.status_code == 503
        assert "dead" in ready.json()["engine"]
        assert running.client.get("/health").status_code == 200
        check_failed(running, "engine_dead")


def test_a_draining_server_is_not_ready_and_takes_nothing(bench: Bench) -> None:
    with bench.serve(Script(answer="x")) as running:
        running.services.admission.drain()
        assert running.client.get("/ready").status_code == 503
        check_failed(running, "shutting_down")
        assert running.metric("requests_rejected_total", reason="draining") == 1
        assert running.client.post("/tokenize", json={"prompt": "x"}).status_code == 503


def test_chroma_that_died_comes_back(bench: Bench) -> None:
    """Last in this file: the restart takes a second or two."""
    pid = chroma_pid(bench)
    restarts = bench.services.metrics.chroma_restarts
    before = restarts._value.get()
    with bench.serve() as running:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: running.client.get("/ready").status_code == 503)
        assert "hroma" in running.client.get("/ready").json()["vectors"]
        response = running.ask()
        assert response.status_code == 200
        assert response.headers["x-rag-status"] in ("degraded", "hit")
        eventually(lambda: running.client.get("/ready").status_code == 200)
        assert running.ask().headers["x-rag-status"] == "hit"
        assert chroma_pid(bench) != pid
        assert restarts._value.get() == before + 1

"""A server process at its most talkative: its log as JSON, what is not in it, and its traces."""

from __future__ import annotations

import io
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from retrieval.embed import QueryBatcher, Vectors
from retrieval.errors import EmbedderError
from server.adopted import QuerySide
from server.telemetry.logs import JsonFormatter
from tests.server.api.bench import (
    DEADLINE_SECONDS,
    DOCUMENTS,
    QUESTION,
    ROUTE,
    Bench,
    chat,
    ingest_by_command,
    write_documents,
)
from tests.server.api.test_process import serving
from tests.server.collector import Collector, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
#: Words of the questions, of the documents and of the answers; no name of a file, store or model.
CONTENT = ("loan", "reading room", "thirty", "Morva", "steeped", "zebra", "The sources say")


@dataclass(frozen=True)
class Ran:
    """What a server left behind after some requests: `ids` are the requests' by what they were."""

    lines: list[dict[str, Any]]
    collector: Collector
    ids: dict[str, str]

    def of(self, what: str) -> list[dict[str, Any]]:
        """The lines of one request."""
        return [line for line in self.lines if line.get("request_id") == self.ids[what]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("log")
    ingest_by_command(folder / "data", write_documents(folder / "docs"), "docs")
    answer = "The sources say nothing of it"
    script = {"fail": "midstream", "answer": answer, "token_seconds": 0.05}
    with (
        collecting() as collector,
        serving(
            folder / "data", script, log_format="json", log_level="debug",
            otlp_endpoint=collector.url, push_instance="replica-7",
        ) as process,
    ):  # fmt: skip
        ids = ask(process.ready())
        process.popen.send_signal(signal.SIGTERM)
        assert process.ended() == 0
        yield Ran([json.loads(line) for line in process.lines], collector, ids)


def ask(url: str) -> dict[str, str]:
    """Requests that go well and badly; their ids."""
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    bodies: dict[str, Any] = {
        "grounded": chat(model="scripted@docs"),
        "streamed": chat(model="scripted@docs", stream=True),
        "midstream": chat(
            "How is Morva tea steeped by a zebra?", model="scripted@docs", stream=True
        ),
        "wrong": chat("zebra", model="scripted@docs", rag={"zebra": "zebra"}),
        "nowhere": chat("zebra", model="scripted@zebra"),
        "surrogate": chat("zebra \ud83d", model="scripted@docs"),
        "tokens": {"model": "scripted", "messages": [{"role": "zebra", "content": {"zebra": 1}}]},
    }
    ids = {}
    with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS, trust_env=False) as client:
        for what, body in bodies.items():
            raw = json.dumps(body).encode()
            headers = {"content-type": "application/json", "x-request-id": f"my-{what}", **traced}
            ids[what] = client.post(ROUTE, content=raw, headers=headers).headers["x-request-id"]
        left = {**traced, "x-request-id": "my-left"}
        with client.stream("POST", ROUTE, json=bodies["midstream"], headers=left) as stream:
            ids["left"] = stream.headers["x-request-id"]
        search = {"query": QUESTION}
        response = client.post("/v1/vector_stores/docs/search", json=search)
        assert response.status_code == 200
        ids["search"] = response.headers["x-request-id"]
        client.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": QUESTION})
    return ids


def test_every_line_is_an_object(ran: Ran) -> None:
    for line in ran.lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["time"].endswith("+00:00")
    assert any("is ready on http" in line["message"] for line in ran.lines)
    (left,) = [line for line in ran.of("left") if line["level"] == "debug"]
    assert "went away" in left["message"]


def test_a_line_says_which_request_and_which_trace(ran: Ran) -> None:
    (line,) = [line for line in ran.of("grounded") if line["logger"] == "groundwire.request"]
    assert line["trace_id"] == TRACE
    assert (line["route"], line["outcome"]) == (ROUTE, "ok")
    assert line["message"].startswith(line["completion_id"])
    assert {"plan", "embed", "search"} <= line["timings_ms"].keys()
    assert line["duration_seconds"] > 0
    (search,) = [line for line in ran.of("search") if line["logger"] == "groundwire.request"]
    assert "completion_id" not in search
    assert search["message"].startswith("/v1/vector_stores/")
    assert search["trace_id"] in {root.trace_id for root in ran.collector.roots()} - {TRACE}


def test_nothing_of_a_prompt_a_passage_or_an_answer_is_in_it(ran: Ran) -> None:
    assert all(word in DOCUMENTS["handbook.md"] for word in ("loan", "reading room", "thirty"))
    outcomes = {line["outcome"] for line in ran.lines if "outcome" in line}
    assert {"ok", "rejected", "error"} <= outcomes
    for line in ran.lines:
        assert [word for word in CONTENT if word in json.dumps(line)] == [], line


def test_what_was_going_on_at_the_end_is_sent(ran: Ran) -> None:
    roots = ran.collector.roots()
    assert {root.resource["service.instance.id"] for root in roots} == {"replica-7"}
    by_id = {root.attributes["groundwire.request_id"]: root for root in roots}
    assert set(ran.ids.values()) <= by_id.keys()
    root = by_id[ran.ids["grounded"]]
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    assert root.resource["service.name"] == "groundwire"
    assert {"plan", "search", "decode", "weave"} <= ran.collector.below(root).keys()


class Choking:
    """A tokenizer that quotes what it cannot read, behind an embedder's own words."""

    name, dimension, max_tokens = "choking", 384, 256

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        try:
            raise ValueError(f"cannot tokenize {texts[0]!r}")
        except ValueError as error:
            raise EmbedderError(f"embedder choking failed: {error}") from error

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return self.embed_queries(texts)

    def count_tokens(self, text: str) -> int:
        return len(text)


@contextmanager
def logged(*, content: bool) -> Iterator[io.StringIO]:
    """What the server logs, as JSON."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter(content=content))
    log = logging.getLogger("server")
    log.addHandler(handler)
    try:
        yield out
    finally:
        log.removeHandler(handler)


@pytest.mark.parametrize("content", [False, True])
def test_an_embedder_that_quotes_the_question(bench: Bench, content: bool) -> None:
    embedder = Choking()
    queries = QueryBatcher(embedder)
    try:
        with (
            logged(content=content) as out,
            bench.serve(questions=QuerySide.of(embedder, queries)) as running,
        ):
            assert running.ask().headers["x-rag-status"] == "degraded"
            refused = running.ask(rag={"on_error": "fail"})
            searched = running.client.post(
                "/v1/vector_stores/docs/search", json={"query": QUESTION}
            )
    finally:
        bench.run(queries.close())
    assert refused.status_code == 503
    assert searched.status_code == 500
    error = searched.json()["error"]
    assert error["code"] == "embedder_unavailable"
    assert "choking" not in error["message"]
    assert searched.headers["x-request-id"] in error["message"]
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    said = [line["message"] for line in lines if "embedder choking failed: " in line["message"]]
    assert ["retrieval failed" in message for message in said] == [True, True, False]
    assert (QUESTION in out.getvalue()) is content
    assert QUESTION not in refused.text


def test_content_is_logged_where_it_is_asked_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "groundwire.content"):
        with bench.serve() as running:
            running.ask()
        assert QUESTION not in caplog.text
        with bench.serve(log_content=True) as running:
            running.ask()
    assert QUESTION in caplog.text
    assert "thirty days" in caplog.text

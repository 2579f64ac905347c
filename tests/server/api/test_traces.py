"""The spans of requests, as a collector gets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from retrieval.trace import STAGES
from server.engine.scripted import Script
from server.telemetry.tracing import Collector as To
from server.telemetry.tracing import OtelTracer, open_tracing
from tests.server.api.bench import ANSWER, QUESTION, ROUTE, Bench, Running, chat, eventually
from tests.server.api.test_leaving import DECODE, read_until, request
from tests.server.api.test_upstream import over
from tests.server.collector import Collector, Received, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61rcWkgMzE"}
SLOW = Script(answer=ANSWER, queue_seconds=0.02, prefill_seconds=0.05, token_seconds=0.01)


@contextmanager
def tracing(bench: Bench, ratio: float | None = None) -> Iterator[tuple[OtelTracer, Collector]]:
    """A tracer and the collector that has all of its spans once the block has ended."""
    with collecting() as collector:
        to = To(f"{collector.url}/v1/traces", {"service.name": "groundwire"}, ratio)
        opened = open_tracing(to)
        tracer = bench.run(opened.__aenter__())
        try:
            yield tracer, collector
        finally:
            bench.run(opened.__aexit__(None, None, None))


@contextmanager
def traced(bench: Bench, script: Script | None = None) -> Iterator[tuple[Running, Collector]]:
    with tracing(bench) as (tracer, collector), bench.serve(script, tracer=tracer) as running:
        yield running, collector


def only(collector: Collector) -> Received:
    (root,) = collector.roots()
    return root


@pytest.mark.parametrize("streamed", [False, True])
def test_a_grounded_chat(bench: Bench, streamed: bool) -> None:
    with traced(bench, SLOW) as (running, collector):
        response = running.ask(
            stream=streamed, temperature=0.5, max_tokens=40, n=1, headers=FROM_CLIENT
        )
        text = response.text.split("\n\n")[0].removeprefix("data: ") if streamed else response.text
        completion_id = json.loads(text)["id"]
        eventually(lambda: running.in_flight == 0)
        labels = {"route": ROUTE, "outcome": "ok", "grounded": "true"}
        whole = running.metric("request_duration_seconds_sum", **labels)
        by_stage = {
            stage: running.metric("stage_duration_seconds_sum", stage=stage, outcome="ok")
            for stage in STAGES
        }
        receipt = running.client.get(f"/v1/rag/receipts/{completion_id}").json()
    root = only(collector)
    assert (root.name, root.failed) == ("chat gpt-4o-mini", False)
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    assert root.state == "congo=t61rcWkgMzE"
    assert receipt["trace_id"] == TRACE
    assert root.resource["service.name"] == "groundwire"

    stages = collector.below(root)
    assert set(stages) == set(STAGES) - {"rerank"}
    assert len(collector.spans) == 1 + len(stages)
    assert root.seconds == pytest.approx(whole, abs=2e-6)
    for stage, span in stages.items():
        assert span.seconds == pytest.approx(by_stage[stage], abs=2e-6), stage
        assert span.trace_id == TRACE
        assert root.start - 1e-6 <= span.start <= span.end <= root.end + 1e-6, stage
    assert stages["queue"].seconds == pytest.approx(0.02, abs=1e-4)
    assert stages["prefill"].start == pytest.approx(stages["queue"].end, abs=2e-6)

    attributes = root.attributes
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "gpt-4o-mini"
    assert attributes["gen_ai.response.model"] == "scripted"
    assert attributes["gen_ai.response.id"] == completion_id
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.max_tokens"] == 40
    assert attributes["gen_ai.request.stream"] is streamed
    assert attributes["gen_ai.usage.input_tokens"] == receipt["tokens"]["prompt"]
    assert attributes["gen_ai.usage.output_tokens"] == receipt["tokens"]["completion"]
    assert attributes["groundwire.request_id"] == response.headers["x-request-id"]
    assert attributes["groundwire.outcome"] == "ok"
    assert attributes["groundwire.retrieval.status"] == "hit"
    assert attributes["groundwire.retrieval.stores"] == [one["id"] for one in receipt["stores"]]
    assert attributes["groundwire.retrieval.candidates"] == len(receipt["candidates"])
    said = str([(span.name, span.attributes, span.events) for span in collector.spans])
    assert "loan" not in said  # of the question, the passages and the answer
    assert "handbook" not in said
    assert ("first_token" in root.events) is streamed
    assert root.start <= root.events["admitted"] <= stages["plan"].start


def test_a_trace_that_begins_here(bench: Bench) -> None:
    with traced(bench) as (running, collector):
        answers = [running.ask(model="scripted@none").json() for _ in range(2)]
        receipts = [running.client.get(f"/v1/rag/receipts/{one['id']}").json() for one in answers]
    roots = collector.roots()
    assert [root.trace_id for root in roots] == [one["trace_id"] for one in receipts]
    assert len({root.trace_id for root in roots}) == 2
    assert {root.parent_id for root in roots} == {""}
    assert {root.attributes["groundwire.retrieval.status"] for root in roots} == {"off"}


def test_a_client_that_leaves(bench: Bench) -> None:
    with traced(bench, DECODE) as (running, collector):
        with request(running, stream=True) as sock:
            read_until(sock, b"word")
        eventually(lambda: running.in_flight == 0)
    root = only(collector)
    assert root.attributes["groundwire.outcome"] == "cancelled"
    assert not root.failed
    assert "error.type" not in root.attributes
    decode = collector.below(root)["decode"]
    assert (decode.attributes["groundwire.outcome"], decode.failed) == ("cancelled", False)


@pytest.mark.parametrize(
    ("script", "fields", "outcome", "error"),
    [
        (Script(fail="reject"), {"temperature": [1]}, "rejected", "invalid_request_error"),
        (Script(fail="overloaded"), {}, "error", "overloaded"),
        (Script(answer="a b c d e f", fail="midstream"), {"stream": True}, "error", "_OTHER"),
        (Script(), {"model": "nobody-knows"}, "rejected", "model_not_found"),
        (Script(), {"model": "scripted@no-such-store"}, "rejected", "store_not_found"),
    ],
    ids=["reject", "overloaded", "midstream", "model", "store"],
)
def test_what_fails(
    bench: Bench, script: Script, fields: dict[str, object], outcome: str, error: str
) -> None:
    with traced(bench, script) as (running, collector):
        running.ask(**fields)
        eventually(lambda: running.in_flight == 0)
    root = only(collector)
    assert root.attributes["groundwire.outcome"] == outcome
    assert root.attributes["error.type"] == error
    assert root.failed is (outcome == "error")


def test_embeddings_and_searches(bench: Bench) -> None:
    with traced(bench) as (running, collector):
        embedding = {"model": "text-embedding-3-small", "input": QUESTION}
        assert running.client.post("/v1/embeddings", json=embedding).status_code == 200
        path = "/v1/vector_stores/docs/search"
        assert running.client.post(path, json={"query": QUESTION}).status_code == 200
    embeddings, search = collector.roots()
    assert embeddings.name == "embeddings text-embedding-3-small"
    assert search.name == "retrieval"
    assert {"embed", "lexical", "search", "fuse"} <= set(collector.below(search))
    assert QUESTION not in str(collector.spans)


def test_what_the_client_does_not_sample_is_not_sent_but_belongs_to_its_trace(bench: Bench) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    with traced(bench) as (running, collector):
        answer = running.ask(headers=headers).json()
        receipt = running.client.get(f"/v1/rag/receipts/{answer['id']}").json()
    assert collector.spans == []
    assert receipt["trace_id"] == TRACE


@pytest.mark.parametrize(("ratio", "traces"), [(0.0, [TRACE]), (1.0, [TRACE, None])])
def test_a_ratio_is_of_the_traces_that_begin_here(
    bench: Bench, ratio: float, traces: list[str | None]
) -> None:
    with tracing(bench, ratio) as (tracer, collector), bench.serve(tracer=tracer) as running:
        running.ask(headers=FROM_CLIENT)
        running.ask()
    assert [r.trace_id if r.parent_id else None for r in collector.roots()] == traces


@pytest.mark.parametrize("streamed", [False, True])
def test_one_trace_over_two_servers(bench: Bench, streamed: bool) -> None:
    with (
        tracing(bench) as (tracer, collector),
        bench.serve(default_store=None, tracer=tracer) as far,
        over(bench, far.url) as untraced,
    ):
        engine = untraced.services.engines["far"]
        with bench.serve(instead={"far": engine}, tracer=tracer) as near:
            near.ask(stream=streamed, headers=FROM_CLIENT)
            eventually(lambda: near.in_flight == far.in_flight == 0)
    there, here = sorted(collector.roots(), key=lambda root: root.parent_id == PARENT)
    assert here.parent_id == PARENT
    assert there.parent_id == here.span_id
    assert there.trace_id == here.trace_id == TRACE
    assert here.start <= there.start
    assert there.state == "congo=t61rcWkgMzE"


def test_a_server_that_sends_no_traces_hands_the_client_s_on(bench: Bench) -> None:
    with (
        tracing(bench) as (tracer, collector),
        bench.serve(default_store=None, tracer=tracer) as far,
        over(bench, far.url) as near,
    ):
        near.ask(headers=FROM_CLIENT)
        near.ask()
    one, other = collector.roots()
    assert (one.trace_id, one.parent_id) == (TRACE, PARENT)
    assert (other.trace_id != TRACE, other.parent_id) == (True, "")


def test_a_collector_that_is_away_costs_no_request_and_a_moment_at_the_end(bench: Bench) -> None:
    opened = open_tracing(To("http://127.0.0.1:9/v1/traces", {}, close_seconds=0.2))
    tracer = bench.run(opened.__aenter__())
    with bench.serve(tracer=tracer) as running:
        assert running.ask().status_code == 200
    bench.run(opened.__aexit__(None, None, None), timeout=10)


def test_a_dry_run_and_a_text_completion(bench: Bench) -> None:
    with traced(bench) as (running, collector):
        body = {"model": "scripted@docs", "prompt": [QUESTION, "Morva tea?"]}
        assert running.client.post("/v1/completions", json=body).status_code == 200
        assert httpx.post(
            f"{running.url}{ROUTE}", json=chat(rag={"dry_run": True}), trust_env=False
        ).is_success
    text, dry = collector.roots()
    assert text.name == "text_completion scripted@docs"
    assert text.attributes["gen_ai.response.model"] == "scripted"
    names = [span.name for span in collector.spans if span.parent_id == text.span_id]
    assert names.count("embed") == 2
    assert dry.attributes["groundwire.outcome"] == "dry_run"

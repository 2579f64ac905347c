"""metrics: names, labels and units; and one recording read into them once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from retrieval.ingest.steps import STEPS
from retrieval.trace import STAGES, Trace
from retrieval.types import Candidate, Drop, Passage
from server.engine.base import EngineTimings
from server.receipts import DROP_REASONS, Receipt
from server.services import shown_tenants
from server.settings import Settings
from server.start import StepRecord
from server.telemetry import buckets
from server.telemetry.build import build_of
from server.telemetry.exposition import exposition
from server.telemetry.metrics import MAX_MODELS, Metrics, new_registry
from server.telemetry.recorder import DRY_RUN, Recording
from server.telemetry.spans import Untraced
from server.telemetry.traceparent import TraceContext

TIMINGS = EngineTimings(0.1, 0.2, 0.3, prompt_tokens=100, completion_tokens=7, cached_tokens=64)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(new_registry())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"groundwire_{name}", labels)


def receipt(status: Any = "hit", tokens: int = 40) -> Receipt:
    return Receipt(status, lambda _: "", context_tokens=tokens)


def test_registries_are_apart() -> None:
    one, two = Metrics(new_registry()), Metrics(new_registry())
    one.retrievals.labels("hit").inc()
    assert value(two, "retrievals_total", status="hit") == 0


def test_names_carry_the_prefix_and_the_unit(metrics: Metrics) -> None:
    names = {one.name for one in metrics.definitions}
    assert {family.name for family in metrics.registry.collect()} == {
        one.name.removesuffix("_total") for one in metrics.definitions
    }
    assert all(name.startswith("groundwire_") for name in names)
    for part in ("duration", "latency", "time_to", "timestamp", "_begin"):
        timed = {name for name in names if part in name}
        assert timed
        assert all(name.endswith("_seconds") for name in timed), timed
    assert all(
        one.name.endswith("_total") == (one.kind == "counter") for one in metrics.definitions
    )


def test_a_start(metrics: Metrics) -> None:
    metrics.observe_start([StepRecord("engine", 2.0, 30.0), StepRecord("chroma", 3.0, 1.5)])
    assert value(metrics, "start_step_duration_seconds", step="chroma") == 1.5
    assert value(metrics, "start_step_begin_seconds", step="engine") == 2.0
    assert value(metrics, "start_duration_seconds") == 32.0


def test_a_finished_request(metrics: Metrics) -> None:
    recording = Recording(metrics, "/r")
    with recording.trace.stage("embed"):
        pass
    recording.grounded_in(receipt())
    recording.token()
    recording.engine_finished(TIMINGS)
    recording.close("ok")
    recording.close("error")
    labels = {"route": "/r", "grounded": "true"}
    assert value(metrics, "request_duration_seconds_count", outcome="ok", **labels) == 1
    assert value(metrics, "request_duration_seconds_count", outcome="error", **labels) is None
    for stage, seconds in (("queue", 0.1), ("prefill", 0.2), ("decode", 0.3)):
        total = value(metrics, "stage_duration_seconds_sum", stage=stage, outcome="ok")
        assert total == pytest.approx(seconds)
    assert value(metrics, "time_to_first_token_seconds_count", grounded="true") == 1
    tokens = {
        k: value(metrics, "tokens_total", kind=k)
        for k in ("prompt", "context", "cached", "completion")
    }
    assert tokens == {"prompt": 100, "context": 40, "cached": 64, "completion": 7}
    assert value(metrics, "retrievals_total", status="hit") == 1
    assert value(metrics, "requests_aborted_total", route="/r") is None


def test_off_is_not_grounded(metrics: Metrics) -> None:
    recording = Recording(metrics, "/r")
    recording.grounded_in(receipt("off", 0))
    recording.close("ok")
    assert (
        value(metrics, "request_duration_seconds_count", route="/r", outcome="ok", grounded="false")
        == 1
    )


def test_context_is_a_part_of_the_prompts_that_were_told(metrics: Metrics) -> None:
    for outcome, timings in (("ok", TIMINGS), ("cancelled", None)):
        recording = Recording(metrics, "/r")
        recording.grounded_in(receipt(tokens=90))
        recording.engine_finished(timings)
        recording.close(outcome)
    seen = {kind: value(metrics, "tokens_total", kind=kind) for kind in ("prompt", "context")}
    assert seen == {"prompt": 100, "context": 90}
    assert value(metrics, "context_tokens_count") == 2


def test_steps_of_ingests_are_there_before_the_first(metrics: Metrics) -> None:
    """What begins with its totals has not increased by them."""
    counts = {
        s.labels["step"]: s.value for s in samples(metrics, "ingest_step_duration_seconds_count")
    }
    assert counts == dict.fromkeys(STEPS, 0)
    metrics.ingests = metrics.ingests.plus("ok", {}, {"embed": [0.2, 0.3]}, 1.0)
    assert value(metrics, "ingest_step_duration_seconds_count", step="embed") == 2
    assert value(metrics, "ingest_step_duration_seconds_count", step="load") == 0


@pytest.mark.parametrize(
    ("has_token", "stages"),
    [(False, {("prefill", "cancelled")}), (True, {("prefill", "ok"), ("decode", "cancelled")})],
)
def test_a_request_that_is_left(
    metrics: Metrics, has_token: bool, stages: set[tuple[str, str]]
) -> None:
    recording = Recording(metrics, "/r")
    recording.grounded_in(receipt())
    if has_token:
        recording.token()
    recording.close("cancelled")
    seen = {
        (stage, outcome)
        for stage in STAGES
        for outcome in ("ok", "error", "cancelled")
        if value(metrics, "stage_duration_seconds_count", stage=stage, outcome=outcome)
    }
    assert seen == stages
    assert value(metrics, "requests_aborted_total", route="/r") == 1


def test_what_alerts_count_is_there_from_the_start(metrics: Metrics) -> None:
    """A counter that begins at its first count has not increased by it."""
    for name, label, values in (
        ("requests_total", "outcome", ("ok", "error", "rejected", "cancelled", DRY_RUN)),
        ("requests_rejected_total", "reason", ("queue_full", "queue_tokens", "queue_timeout")),
        ("canary_runs_total", "outcome", ("ok", "error")),
    ):
        seen = {sample.labels[label]: sample.value for sample in samples(metrics, name)}
        assert seen == dict.fromkeys(values, 0.0)
    assert value(metrics, "abandoned_wait_seconds_count") == 0
    Recording(metrics, "/r").close("error")
    assert value(metrics, "requests_total", outcome="error") == 1


@pytest.mark.parametrize(
    ("stream", "has_token", "outcome", "counted"),
    [
        (True, False, "cancelled", 1),
        (True, True, "cancelled", 0),
        (True, False, "error", 0),
        (False, False, "cancelled", 0),
    ],
)
def test_a_stream_that_is_left_without_a_token(
    metrics: Metrics, stream: bool, has_token: bool, outcome: str, counted: int
) -> None:
    clock = iter((0.0, *[30.0] * 9))
    recording = Recording(metrics, "/r")
    recording.trace = Trace(lambda: next(clock))
    recording.asked = {"stream": stream}
    recording.grounded_in(receipt())
    if has_token:
        recording.token()
    recording.close(outcome)
    assert value(metrics, "abandoned_wait_seconds_count") == counted
    assert value(metrics, "abandoned_wait_seconds_sum") == 30.0 * counted
    assert value(metrics, "abandoned_wait_seconds_bucket", le="2.0") == 0
    ttft = value(metrics, "time_to_first_token_seconds_count", grounded="true")
    assert ttft == (1 if has_token else None)


def test_what_broke_off_is_an_error(metrics: Metrics) -> None:
    recording = Recording(metrics, "/r")
    recording.grounded_in(receipt())
    recording.failed("error")
    recording.close("ok")
    assert (
        value(
            metrics, "request_duration_seconds_count", route="/r", outcome="error", grounded="true"
        )
        == 1
    )


def test_completion_ids_are_ours_and_distinct(metrics: Metrics) -> None:
    ids = {Recording(metrics, "/r").completion_id for _ in range(100)}
    assert len(ids) == 100
    assert all(made.startswith("chatcmpl-") for made in ids)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
    ],
)
def test_the_page_holds_the_processs_metrics_too(metrics: Metrics, accept: str, kind: str) -> None:
    metrics.retrievals.labels("hit").inc()
    body, content_type = exposition(metrics.registry, accept)
    assert content_type.startswith(kind)
    assert b'groundwire_retrievals_total{status="hit"} 1.0' in body
    assert b"process_cpu_seconds_total" in body
    assert b"_created" not in body


def test_vllm_s_metrics_have_their_names_whoever_asks() -> None:
    """client_python takes the colon out for a scraper that asks for OpenMetrics with its default escaping."""
    registry = new_registry()
    Gauge("vllm:num_requests_running", "As vLLM names its own.", registry=registry).set(3)
    for accept in (
        "",
        "application/openmetrics-text",
        "application/openmetrics-text; version=1.0.0; escaping=underscores",
    ):
        body, _ = exposition(registry, accept)
        assert b"\nvllm:num_requests_running 3.0\n" in body, accept


def samples(metrics: Metrics, name: str) -> list[Any]:
    return [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"groundwire_{name}"
    ]


def test_each_stage_has_buckets_of_its_own(metrics: Metrics) -> None:
    assert set(buckets.STAGE) == set(STAGES)
    for stage in STAGES:
        metrics.stage_seconds.labels(stage, "ok").observe(0.0)
    bounds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for sample in samples(metrics, "stage_duration_seconds_bucket"):
        bounds[sample.labels["stage"]].append(float(sample.labels["le"]))
    assert bounds == {stage: [*buckets.STAGE[stage], math.inf] for stage in STAGES}
    with pytest.raises(KeyError):
        metrics.stage_seconds.labels("auth", "ok")


@pytest.mark.parametrize(
    "own", [v for k, v in vars(buckets).items() if k[0] != "_" and k.isupper()]
)
def test_buckets_are_in_order(own: Any) -> None:
    for bounds in own.values() if isinstance(own, dict) else [own]:
        assert list(bounds) == sorted(set(bounds))
        assert len(bounds) <= 20


def traced(trace_id: str, *, sampled: bool = True) -> Untraced:
    return Untraced(TraceContext(trace_id, "00f067aa0ba902b7", sampled))


def test_exemplars_carry_the_trace(metrics: Metrics) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    recording = Recording(metrics, "/r", span=traced(trace_id))
    with recording.trace.stage("embed"):
        pass
    recording.token()
    recording.close("ok")
    Recording(metrics, "/untraced").close("ok")
    Recording(metrics, "/kept-by-nobody", span=traced("cd" * 16, sampled=False)).close("ok")
    page = exposition(metrics.registry, "application/openmetrics-text; version=1.0.0")[0].decode()
    marked = [line for line in page.splitlines() if f'# {{trace_id="{trace_id}"}}' in line]
    assert {line.partition("{")[0].removesuffix("_bucket") for line in marked} == {
        "groundwire_request_duration_seconds",
        "groundwire_stage_duration_seconds",
        "groundwire_time_to_first_token_seconds",
    }
    assert "cdcd" not in page
    assert "trace_id" not in exposition(metrics.registry, "")[0].decode()


def test_a_strict_reader_reads_the_page(metrics: Metrics) -> None:
    metrics.ingests = metrics.ingests.plus("ok", {"added": 1}, {"embed": [0.2], "load": [9e9]}, 1.0)
    recording = Recording(metrics, "/r", span=traced("ab" * 16))
    recording.grounded_in(receipt())
    for _ in range(3):
        recording.token()
    recording.engine_finished(TIMINGS)
    recording.close("ok")
    page = exposition(metrics.registry, "application/openmetrics-text; version=1.0.0")[0].decode()
    read = {family.name: family for family in text_string_to_metric_families(page)}
    for one in metrics.definitions:
        family = read[one.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (one.kind, one.help)
        for sample in family.samples:
            assert sample.name in one.series
            assert set(sample.labels) - {"le"} == set(one.labels)


def test_the_time_between_tokens(metrics: Metrics) -> None:
    clock = iter((0.0, 1.0, 1.5, 1.75, 9.0, 9.0))
    recording = Recording(metrics, "/r")
    recording.trace = Trace(lambda: next(clock))
    for _ in range(3):
        recording.token()
    recording.token(alone=False)
    recording.close("ok")
    labels = {"grounded": "false"}
    assert value(metrics, "inter_token_latency_seconds_count", **labels) == 2
    assert value(metrics, "inter_token_latency_seconds_sum", **labels) == pytest.approx(0.75)
    assert value(metrics, "time_to_first_token_seconds_sum", **labels) == pytest.approx(1.0)


def candidate(number: int, score: float, **scores: float) -> Candidate:
    return Candidate(Passage("f", "a" * 64, number, "f.txt", "text"), score, scores)


def test_what_became_of_the_candidates(metrics: Metrics) -> None:
    ranked = tuple(candidate(n, 0.9 - n / 10, search=0.5) for n in range(5))
    found = Receipt(
        "hit", lambda _: "", sources=ranked[:2], found=(1, 0), candidates=ranked, best_similarity=0.62,
        dropped=(Drop(ranked[2], "duplicate"), Drop(ranked[3], "over_budget"), Drop(ranked[4], "over_budget")),
        context_tokens=300,
    )  # fmt: skip
    recording = Recording(metrics, "/r")
    recording.grounded_in(found)
    recording.close("ok")
    outcomes = {s.labels["outcome"]: s.value for s in samples(metrics, "passages_total")}
    assert set(outcomes) == {"packed", *DROP_REASONS}
    assert {k: v for k, v in outcomes.items() if v} == {
        "packed": 2, "duplicate": 1, "over_budget": 2,
    }  # fmt: skip
    assert sum(outcomes.values()) == len(found.candidates)
    assert value(metrics, "context_tokens_sum") == 300
    assert value(metrics, "retrieval_score_sum", kind="dense") == pytest.approx(0.62)
    assert value(metrics, "retrieval_score_sum", kind="fused") == pytest.approx(0.9)
    assert value(metrics, "retrieval_score_count", kind="rerank") is None


def test_a_reranked_search_has_three_scores(metrics: Metrics) -> None:
    metrics.observe_search(
        0.4, [candidate(0, 0.8, rerank=0.8, fuse=0.3), candidate(1, 0.2, rerank=0.2, fuse=0.7)]
    )
    seen = {
        kind: value(metrics, "retrieval_score_sum", kind=kind)
        for kind in ("dense", "fused", "rerank")
    }
    assert seen == {"dense": 0.4, "fused": 0.7, "rerank": 0.8}


def test_nothing_found_has_no_score(metrics: Metrics) -> None:
    metrics.observe_search(None, [])
    assert not samples(metrics, "retrieval_score_count")


def test_a_dry_run_packs_nothing(metrics: Metrics) -> None:
    recording = Recording(metrics, "/r")
    recording.grounded_in(replace(receipt(), dropped=(Drop(candidate(0, 0.1), "duplicate"),)))
    recording.close(DRY_RUN)
    assert value(metrics, "passages_total", outcome="duplicate") == 0
    assert value(metrics, "context_tokens_count") == 0
    assert value(metrics, "retrievals_total", status="hit") == 1


def test_tenants_are_shown_on_request_and_bounded(metrics: Metrics) -> None:
    metrics.count_tenant("acme")
    assert not samples(metrics, "tenant_requests_total")
    bounded = Metrics(new_registry(), tenants=["acme"])
    for tenant in ("acme", "acme", "globex", "initech"):
        bounded.count_tenant(tenant)
    seen = {s.labels["tenant"]: s.value for s in samples(bounded, "tenant_requests_total")}
    assert seen == {"acme": 2, "other": 2}
    settings = Settings(api_keys=["b:1", "c:2", "a:3", "4"], metrics_tenants=2)
    assert shown_tenants(settings) == ["a", "b"]


def test_the_canary_s_store_has_one_label(metrics: Metrics) -> None:
    for label in ("docs", "vs_1"):
        metrics.observe_canary(label, {4: 0.5}, 0.5, {"found": 1})
    for name in ("recall", "mrr", "questions", "last_run_timestamp_seconds"):
        assert {s.labels["store"] for s in samples(metrics, f"canary_{name}")} == {"vs_1"}


def test_what_runs(metrics: Metrics) -> None:
    build = build_of(Settings(engine="scripted", chroma_url="http://c:1"), "mini")
    metrics.tell_build(build, [f"model-{n}" for n in range(100)])
    (sample,) = samples(metrics, "build_info")
    assert sample.labels == {
        "version": build.version, "engine": "scripted", "engine_version": build.version,
        "embedder": "mini", "chroma": "external",
    }  # fmt: skip
    assert build_of(Settings(), "mini").chroma[0].isdigit()
    assert len(samples(metrics, "model_info")) == MAX_MODELS

"""metrics: names, labels and units; and one recording read into them once."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval.trace import STAGES
from server.engine.base import EngineTimings
from server.receipts import Receipt
from server.start import StepRecord
from server.telemetry.metrics import Metrics, exposition, new_registry
from server.telemetry.recorder import Recording

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
    assert value(two, "retrievals_total", status="hit") is None


def test_names_carry_the_prefix_and_the_unit(metrics: Metrics) -> None:
    names = {family.name for family in metrics.registry.collect()}
    assert all(name.startswith("groundwire_") for name in names)
    assert {name for name in names if "duration" in name or "time" in name} == {
        "groundwire_stage_duration_seconds",
        "groundwire_request_duration_seconds",
        "groundwire_time_to_first_token_seconds",
        "groundwire_admission_queue_duration_seconds",
        "groundwire_start_step_duration_seconds",
        "groundwire_start_duration_seconds",
        "groundwire_canary_duration_seconds",
        "groundwire_canary_last_run_timestamp_seconds",
    }


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
    recording.first_token()
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
        recording.first_token()
    recording.close("cancelled")
    seen = {
        (stage, outcome)
        for stage in STAGES
        for outcome in ("ok", "error", "cancelled")
        if value(metrics, "stage_duration_seconds_count", stage=stage, outcome=outcome)
    }
    assert seen == stages
    assert value(metrics, "requests_aborted_total", route="/r") == 1


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

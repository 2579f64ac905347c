"""trace: each stage's time and how it ended."""

from __future__ import annotations

import asyncio

import pytest

from retrieval.errors import DeadlineExceeded
from retrieval.trace import STAGES, Trace


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_is_timed_from_the_traces_start() -> None:
    clock = Clock()
    trace = Trace(clock)
    clock.now += 1.0
    with trace.stage("embed"):
        clock.now += 0.25
    (record,) = trace.records
    assert (record.stage, record.start_seconds, record.duration_seconds, record.outcome) == (
        *("embed", 1.0, 0.25, "ok"),
    )
    assert trace.elapsed_seconds() == 1.25


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError, "error"), (TimeoutError, "timeout"), (DeadlineExceeded, "timeout"),
     (asyncio.CancelledError, "cancelled"), (GeneratorExit, "cancelled"),
     (KeyboardInterrupt, "error")],
)  # fmt: skip
def test_a_stage_that_raises_is_recorded_and_raises(
    error: type[BaseException], outcome: str
) -> None:
    trace = Trace()
    with pytest.raises(error), trace.stage("search"):
        raise error
    assert [(record.stage, record.outcome) for record in trace.records] == [("search", outcome)]


def test_a_stage_that_a_limit_ends_took_too_long() -> None:
    trace, over = Trace(), asyncio.Event()
    within = trace.limited(over.is_set).limited(lambda: False)
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError), within.stage("search"):
            raise asyncio.CancelledError
        over.set()
    with pytest.raises(asyncio.CancelledError), trace.stage("search"):
        raise asyncio.CancelledError
    outcomes = [record.outcome for record in trace.records]
    assert outcomes == ["cancelled", "timeout", "cancelled"]


def test_timings_are_in_pipeline_order_and_added_up() -> None:
    trace = Trace()
    trace.record("decode", 2.0)
    trace.record("embed", 0.0011111)
    trace.record("embed", 0.001)
    assert trace.timings_ms() == {"embed": 2.111, "decode": 2000.0}
    assert list(trace.timings_ms()) == ["embed", "decode"]


def test_what_was_measured_elsewhere_ends_now_or_starts_when_told() -> None:
    clock = Clock()
    trace = Trace(clock)
    clock.now += 5.0
    trace.record("queue", 2.0)
    trace.record("prefill", 1.0, start_seconds=4.5)
    assert [record.start_seconds for record in trace.records] == [3.0, 4.5]


def test_labels_are_a_closed_set() -> None:
    with pytest.raises(ValueError, match="unknown stage 'think'"):
        Trace().record("think", 1.0)
    assert len(set(STAGES)) == len(STAGES) == 12

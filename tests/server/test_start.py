"""start: each step's time, what ran beside what, and that a start begins with its process."""

from __future__ import annotations

import time

import pytest

from server.start import STEPS, StartTrace, StepRecord, described, process_began


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_steps_are_timed_from_where_the_start_began() -> None:
    clock = Clock()
    start = StartTrace(began=48.0, clock=clock)
    start.record("imports")
    with start.step("chroma"):
        clock.now += 1.5
    assert start.records == [StepRecord("imports", 0.0, 2.0), StepRecord("chroma", 2.0, 1.5)]
    assert start.total_seconds == start.elapsed_seconds() == 3.5


def test_a_step_that_fails_is_none() -> None:
    start = StartTrace()
    with pytest.raises(OSError, match="no port"), start.step("chroma"):
        raise OSError("no port")
    assert start.records == []
    assert start.total_seconds == 0.0


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown step 'sleep'; steps are imports, wake"):
        StartTrace().record("sleep")
    assert len(set(STEPS)) == len(STEPS)


def test_what_ran_side_by_side_is_said() -> None:
    records = [
        StepRecord("chroma", 2.0, 1.5),
        StepRecord("engine", 2.0, 30.0),
        StepRecord("imports", 0.0, 2.0),
        StepRecord("warm_up", 32.0, 1.0),
    ]
    assert described(records) == [
        "imports         from   0.0 s,   2.0 s",
        "engine          from   2.0 s,  30.0 s  beside chroma",
        "chroma          from   2.0 s,   1.5 s  beside engine",
        "warm_up         from  32.0 s,   1.0 s",
    ]


def test_a_process_began_before_its_first_line_of_python() -> None:
    began = process_began()
    assert began < time.monotonic() - 0.1  # a pytest has taken longer than this to come here
    assert process_began() == pytest.approx(began, abs=1.0)  # a machine that is busy may pause us

"""What a scenario hands back: figures, each with its rounds, its interval and its verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.stats import Interval, Target, mean_interval, paired_difference, paired_ratio

#: Beside how long a step of a start took: when it began.
BEGAN = "s after the process"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing: a value per contender and round, and the estimate that is judged.

    `compared` says what the estimate is: "ratio" or "difference" of the first contender to the second,
    the first contender's "value", or a value seen "once", whose interval says nothing.
    """

    name: str
    unit: str
    rounds: Mapping[str, Sequence[float]]
    compared: str
    estimate: Interval
    target: Target | None = None
    at_once: int = 1

    def as_json(self) -> dict[str, Any]:
        verdict = self.target.judge(self.estimate) if self.target else None
        return {**asdict(self), "verdict": verdict}


def ratio(
    name: str,
    unit: str,
    ours: tuple[str, Sequence[float]],
    theirs: tuple[str, Sequence[float]],
    target: Target | None = None,
    *,
    at_once: int = 1,
) -> Figure:
    """Ours over theirs; each side is its name and its rounds."""
    estimate = paired_ratio(ours[1], theirs[1])
    return Figure(name, unit, dict([ours, theirs]), "ratio", estimate, target, at_once)


def difference(
    name: str,
    unit: str,
    ours: tuple[str, Sequence[float]],
    theirs: tuple[str, Sequence[float]],
    target: Target | None = None,
) -> Figure:
    """Ours minus theirs."""
    estimate = paired_difference(ours[1], theirs[1])
    return Figure(name, unit, dict([ours, theirs]), "difference", estimate, target)


def value(
    name: str, unit: str, rounds: Sequence[float], target: Target | None = None, *, at_once: int = 1
) -> Figure:
    """Groundwire's own number, compared with nothing but the target."""
    estimate = mean_interval(rounds)
    return Figure(name, unit, {"Groundwire": rounds}, "value", estimate, target, at_once)


def once(name: str, unit: str, seen: float, target: Target | None = None) -> Figure:
    """What one long run says, where there are no rounds."""
    estimate = Interval(seen, seen, seen)
    return Figure(name, unit, {"Groundwire": [seen]}, "once", estimate, target)

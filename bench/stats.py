"""The arithmetic of a comparison: one method for every interval, and the verdict that it gives. Pure.

Each round yields one number per contender. What is compared is made per round (a ratio's logarithm, a
difference, or the number itself), and a two-sided 95 % interval of Student's t is laid on the rounds' mean.
Rounds are paired because both sides ran side by side: what slowed one slowed the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

#: Two-sided 95 % quantiles of Student's t by degrees of freedom (standard tables); 1.96 beyond them.
STUDENT_T = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 19: 2.093, 24: 2.064, 29: 2.045,
}  # fmt: skip

Verdict = Literal["met", "not met", "undecided"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Target:
    """What an estimate must reach: at least `low`, at most `high`; None leaves that side open."""

    low: float | None = None
    high: float | None = None

    def judge(self, estimate: Interval) -> Verdict:
        """ "met" or "not met" only where the whole interval says so."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if low <= estimate.low and estimate.high <= high:
            return "met"
        if estimate.high < low or estimate.low > high:
            return "not met"
        return "undecided"


def t_quantile(degrees: int) -> float:
    """The quantile for at least `degrees` degrees of freedom, from the next smaller row of the table."""
    rows = [row for row in STUDENT_T if row <= degrees]
    return STUDENT_T[max(rows)] if degrees <= 30 else 1.96


def mean_interval(rounds: Sequence[float]) -> Interval:
    """The rounds' mean. Raises ValueError for fewer than two rounds."""
    if len(rounds) < 2:
        raise ValueError("an interval needs two or more rounds")
    middle = fmean(rounds)
    margin = t_quantile(len(rounds) - 1) * stdev(rounds) / math.sqrt(len(rounds))
    return Interval(middle, middle - margin, middle + margin)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The geometric mean of the rounds' ratios. Raises ValueError, also for sides of different lengths."""
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    found = mean_interval(logs)
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean of the rounds' differences. Raises ValueError, also for sides of different lengths."""
    return mean_interval([one - other for one, other in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]

"""The arithmetic of a comparison: medians, and ratios with their intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

#: Two-sided 95 % quantiles of Student's t by degrees of freedom (standard tables); 1.96 beyond them.
STUDENT_T = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 19: 2.093, 24: 2.064, 29: 2.045,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs, and the 95 % interval of that."""

    value: float
    low: float
    high: float


def t_quantile(degrees: int) -> float:
    """The quantile for at least `degrees` degrees of freedom, from the next smaller row of the table."""
    rows = [row for row in STUDENT_T if row <= degrees]
    return STUDENT_T[max(rows)] if degrees <= 30 else 1.96


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The geometric mean of per-round ratios, with a t interval on their logarithms.

    Rounds are paired because both sides ran side by side: what slowed one slowed the other.
    Raises ValueError for fewer than two rounds or sides of different lengths.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError("a ratio needs the same two or more rounds of both sides")
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    middle = fmean(logs)
    margin = t_quantile(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), math.exp(middle - margin), math.exp(middle + margin))


def median_of_rounds(rounds: Sequence[Sequence[float]]) -> float:
    """The typical round: the median over rounds of each round's median."""
    return median([median(values) for values in rounds])

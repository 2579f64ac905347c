"""The bench's arithmetic, against numbers worked out by hand or in a table."""

from __future__ import annotations

import math

import pytest

from bench.stats import (
    Interval,
    Target,
    mean_interval,
    paired_difference,
    paired_ratio,
    percentile,
    t_quantile,
)


def test_the_mean_s_interval_is_student_s() -> None:
    # Mean 3, standard deviation sqrt(2.5), 4 degrees of freedom: 2.776 * sqrt(2.5 / 5).
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.value == 3
    assert found.high - 3 == pytest.approx(2.776 * math.sqrt(0.5))
    assert 3 - found.low == pytest.approx(2.776 * math.sqrt(0.5))


def test_a_ratio_is_paired_so_that_what_slows_a_round_for_both_cancels() -> None:
    found = paired_ratio([10, 20, 40], [5, 10, 20])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_a_ratio_and_its_inverse_agree() -> None:
    ours, theirs = [1.0, 2.0, 4.0], [2.0, 2.0, 2.0]
    there, back = paired_ratio(ours, theirs), paired_ratio(theirs, ours)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_a_difference_is_paired() -> None:
    found = paired_difference([11, 21, 31], [10, 20, 30])
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("compare", [paired_ratio, paired_difference])
def test_sides_of_different_lengths_are_refused(compare: object) -> None:
    assert callable(compare)
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0])


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two or more rounds"):
        mean_interval([1.0])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.01, "met"), (1.03, 1.2, "not met"), (0.99, 1.05, "undecided")],
)
def test_the_interval_decides_not_its_middle(low: float, high: float, verdict: str) -> None:
    assert Target(high=1.02).judge(Interval(1.0, low, high)) == verdict


def test_a_lower_limit_is_judged_the_other_way_round() -> None:
    target = Target(low=3)
    assert target.judge(Interval(4, 3.1, 5)) == "met"
    assert target.judge(Interval(2, 1, 2.9)) == "not met"
    assert target.judge(Interval(3, 2.9, 3.1)) == "undecided"


def test_the_quantile_is_never_too_small_for_its_degrees() -> None:
    assert t_quantile(11) == t_quantile(10)
    assert t_quantile(1000) == 1.96


def test_the_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.99) == 7

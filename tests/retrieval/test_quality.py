"""recall, nDCG and MRR against their formulas; the bootstrap against what it must keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.quality import RECALL_RANKS, score, summarize


def test_the_formulas() -> None:
    metrics = score(["x", "a", "y", "z", "b"], {"a", "b", "never"})
    gained = 1 / math.log2(3) + 1 / math.log2(6)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics == {
        "recall@1": 0.0,
        "recall@4": pytest.approx(1 / 3),
        "recall@10": pytest.approx(2 / 3),
        "ndcg@10": pytest.approx(gained / ideal),
        "mrr@10": 0.5,
    }


def test_what_lies_below_the_tenth_rank_does_not_count() -> None:
    ranked = [str(number) for number in range(11)]
    assert set(score(ranked, {"10"}).values()) == {0.0}
    assert score(ranked, {"9"})["recall@10"] == 1.0


def test_more_positives_than_ranks_can_still_be_perfect() -> None:
    ranked = [str(number) for number in range(10)]
    assert score(ranked, {str(number) for number in range(20)})["ndcg@10"] == pytest.approx(1.0)


def test_a_rank_is_not_asked_for_more_positives_than_it_can_hold() -> None:
    metrics = score(["a", "x", "b", "c"], {"a", "b", "c", "d", "e"})
    assert (metrics["recall@1"], metrics["recall@4"], metrics["recall@10"]) == (1, 3 / 4, 3 / 5)


def test_no_positive_and_no_query_have_no_score() -> None:
    with pytest.raises(ValueError, match="positive"):
        score(["a"], set())
    with pytest.raises(ValueError, match="no query"):
        summarize([])


def test_an_interval_holds_the_mean_and_is_the_same_again() -> None:
    scores = [{"mrr@10": value} for value in (0.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0, 0.5)]
    found = summarize(scores)["mrr@10"]
    assert found.mean == pytest.approx(0.625)
    assert found.low < found.mean < found.high
    assert summarize(scores)["mrr@10"] == found


def test_more_queries_narrow_the_interval() -> None:
    few = summarize([{"m": float(i % 2)} for i in range(20)])["m"]
    many = summarize([{"m": float(i % 2)} for i in range(2000)])["m"]
    assert (many.high - many.low) < (few.high - few.low) / 5
    # The normal approximation: 1.96 * sqrt(.25 / 2000) on each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 2000), rel=0.1)


@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefghz"), min_size=1))
def test_every_metric_is_a_share(ranked: list[str], positives: set[str]) -> None:
    metrics = score(ranked, positives)
    assert all(0 <= value <= 1 + 1e-9 for value in metrics.values())
    found = [metrics[f"recall@{k}"] * min(k, len(positives)) for k in RECALL_RANKS]
    assert found == sorted(found)

"""fuse: weighted reciprocal rank fusion, against its formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fuse import Ranking, fuse
from retrieval.types import Hit


def ranking(stage: str, ids: str, weight: float = 1.0) -> Ranking:
    return Ranking(stage, [Hit(name, 100.0 - rank) for rank, name in enumerate(ids)], weight)


def ids(hits: list[Hit]) -> str:
    return "".join(hit.passage_id for hit in hits)


def test_the_formula() -> None:
    fused = fuse([ranking("search", "ab"), ranking("lexical", "bc", weight=2.0)], k=10)
    attainable = 3 / 11
    assert [(hit.passage_id, hit.score) for hit in fused] == [
        ("b", pytest.approx((1 / 12 + 2 / 11) / attainable)),
        ("c", pytest.approx((2 / 12) / attainable)),
        ("a", pytest.approx((1 / 11) / attainable)),
    ]


def test_first_everywhere_is_1() -> None:
    (best, *_) = fuse([ranking("search", "ab"), ranking("lexical", "ac", 2.0)], k=60)
    assert best == Hit("a", pytest.approx(1.0))


def test_an_empty_ranking_lowers_the_score_and_keeps_the_order() -> None:
    fused = fuse([ranking("search", "ab"), ranking("lexical", "")], k=10)
    assert ids(fused) == "ab"
    assert fused[0].score == pytest.approx(0.5)


def test_a_ranking_without_weight_does_not_search() -> None:
    fused = fuse([ranking("search", "ab"), ranking("lexical", "cb", weight=0.0)], k=10)
    assert ids(fused) == "ab"
    assert fused[0].score == pytest.approx(1.0)


def test_nothing_to_fuse() -> None:
    assert fuse([], k=10) == []
    assert fuse([ranking("search", "a", weight=0.0)], k=10) == []


def test_ties_keep_the_order_of_the_rankings() -> None:
    assert ids(fuse([ranking("search", "ab"), ranking("lexical", "ba")], k=10)) == "ab"
    assert ids(fuse([ranking("search", "a"), ranking("lexical", "b")], k=0)) == "ab"


@given(
    st.lists(st.permutations("abcdef").map("".join), min_size=1, max_size=3),
    st.integers(min_value=0, max_value=100),
)
def test_scores_are_shares_and_descend(orders: list[str], k: int) -> None:
    fused = fuse([ranking(str(i), order, i + 0.5) for i, order in enumerate(orders)], k=k)
    scores = [hit.score for hit in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 + 1e-9 for score in scores)
    assert set(ids(fused)) == set("abcdef")

"""fuse: two rankings become one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.types import Hit


@dataclass(frozen=True, slots=True)
class Ranking:
    """The hits of one stage, best first, and how much its ranks weigh."""

    stage: str
    hits: Sequence[Hit]
    weight: float = 1.0


def fuse(rankings: Sequence[Ranking], *, k: int) -> list[Hit]:
    """Weighted reciprocal rank fusion, best first; scores are shares of the attainable maximum, 0..1.

    score(d) = sum(weight / (k + rank(d))) / sum(weight / (k + 1)), ranks from 1, over the rankings that
    searched at all (weight above 0). Cormack, Clarke, Buettcher: "Reciprocal Rank Fusion", SIGIR 2009.
    Ties keep the order in which the rankings named them, so that equal input gives equal output.
    """
    attainable = sum(ranking.weight / (k + 1) for ranking in rankings)
    if attainable == 0:
        return []
    totals: dict[str, float] = {}
    for ranking in rankings:
        if ranking.weight == 0:
            continue
        for rank, hit in enumerate(ranking.hits, start=1):
            totals[hit.passage_id] = totals.get(hit.passage_id, 0.0) + ranking.weight / (k + rank)
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return [Hit(passage_id, total / attainable) for passage_id, total in ordered]

"""How good a ranking is: recall@k, nDCG@10 and MRR@10, with 95 % intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

#: The ranks that recall is read at, and the depth of nDCG and MRR.
RECALL_RANKS = (1, 4, 10)
DEPTH = 10
#: Resamples of the bootstrap, and where its random numbers start: equal input gives equal intervals.
RESAMPLES = 2000
SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries, and its 95 % interval."""

    mean: float
    low: float
    high: float


def score(ranked: Sequence[str], positives: Set[str]) -> dict[str, float]:
    """The metrics of one query by name; `ranked` is best first and holds no id twice.

    Recall at k is capped: found / min(k, positives), so that a perfect ranking has 1 (Thakur et al.: "BEIR",
    NeurIPS Datasets and Benchmarks 2021). Gains are 1 for a positive and 0 otherwise, so
    that nDCG = sum(1 / log2(rank + 1)) over the positives found, divided by the same for a perfect ranking
    (Järvelin, Kekäläinen: "Cumulated gain-based evaluation of IR techniques", 2002). MRR is 1 / the rank of
    the first positive, 0 when it is not within DEPTH. Raises ValueError without a positive.
    """
    if not positives:
        raise ValueError("a query without a positive has no score")
    ranks = [rank for rank, id_ in enumerate(ranked[:DEPTH], start=1) if id_ in positives]
    metrics = {
        f"recall@{k}": sum(rank <= k for rank in ranks) / min(k, len(positives))
        for k in RECALL_RANKS
    }
    ideal = _gain(range(1, min(len(positives), DEPTH) + 1))
    metrics[f"ndcg@{DEPTH}"] = _gain(ranks) / ideal
    metrics[f"mrr@{DEPTH}"] = 1 / ranks[0] if ranks else 0.0
    return metrics


def summarize(scores: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Mean and interval of each metric over the queries. Raises ValueError when there are none."""
    if not scores:
        raise ValueError("no query to average over")
    return {name: _estimate([query[name] for query in scores]) for name in scores[0]}


def _gain(ranks: Sequence[int]) -> float:
    return sum(1 / math.log2(rank + 1) for rank in ranks)


def _estimate(values: Sequence[float]) -> Estimate:
    """Percentile bootstrap over queries (Efron, Tibshirani: "An Introduction to the Bootstrap", 1993)."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(SEED).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), (2.5, 97.5))
    return Estimate(float(array.mean()), float(low), float(high))

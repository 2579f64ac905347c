"""Every variant on every question of a set, and its difference to the defaults, question by question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from bench.quality.rankings import Corpus
from bench.quality.variants import Variant
from retrieval.fuse import Ranking
from retrieval.quality import DEPTH, score, summarize
from retrieval.types import Hit, WeightedText
from server.evaluation import Question

METRICS = ("recall@4", "ndcg@10")
Found = Mapping[str, Sequence[Hit]]
Scores = list[dict[str, float]]


def measure(
    corpus: Corpus, variants: Iterable[Variant], progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """By variant: mean, 95 % interval, and the paired difference to the first one, the defaults.

    All intervals are `retrieval.quality`'s bootstrap over questions; that of a difference resamples the
    questions' own differences.
    """
    dense, lexical = cache(corpus.dense), cache(corpus.lexical)
    results: dict[str, Any] = {}
    baseline: Scores | None = None
    for variant in variants:
        progress(variant.name)
        scores = asked(corpus, variant, dense(variant.context), lexical(variant.keywords))
        entry: dict[str, Any] = _summary(scores)
        if baseline is None:
            baseline = scores
        else:
            entry["difference"] = _summary(_differences(scores, baseline))
        results[variant.name] = entry
    return {"questions": len(corpus.data.questions), "variants": results}


def asked(corpus: Corpus, variant: Variant, dense: Found, lexical: Found) -> Scores:
    """The metrics of each question, in the set's order."""
    return [
        score(ranked(corpus, variant, question, dense, lexical)[:DEPTH], question.positives)
        for question in corpus.data.questions
    ]


def ranked(
    corpus: Corpus, variant: Variant, question: Question, dense: Found, lexical: Found
) -> list[str]:
    """The passages that the variant finds, best first."""
    also = question.also if variant.followup else ()
    texts = (WeightedText(question.text), *also)
    fusion = variant.fusion
    rankings = [
        Ranking("search", dense[t.text][: fusion.candidates], t.dense * fusion.dense_weight)
        for t in texts
    ] + [
        Ranking("lexical", lexical[t.text][: fusion.candidates], t.lexical * fusion.lexical_weight)
        for t in texts
    ]
    return variant.arrange(corpus, [hit.passage_id for hit in variant.merged(rankings)])


def _differences(ours: Scores, theirs: Scores) -> Scores:
    return [
        {metric: one[metric] - other[metric] for metric in METRICS}
        for one, other in zip(ours, theirs, strict=True)
    ]


def _summary(scores: Scores) -> dict[str, list[float]]:
    """Mean, low and high of each metric."""
    found = summarize(scores)
    return {
        metric: [round(value, 4) for value in (e.mean, e.low, e.high)]
        for metric, e in ((metric, found[metric]) for metric in METRICS)
    }

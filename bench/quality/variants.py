"""What is tried: each variant changes one thing of the defaults. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.quality.rankings import Context, Corpus, below_headings, below_title, text_alone
from retrieval.fuse import Ranking, fuse
from retrieval.lexical import Keywords
from retrieval.pipeline import FusionSettings
from retrieval.types import Hit

#: From the fused order to the one that is scored.
Arrange = Callable[[Corpus, Sequence[str]], list[str]]
#: A ranking's scores made comparable with another's, 0 for its last hit.
Scale = Callable[[Sequence[float]], list[float]]


_FUSION, _KEYWORDS = FusionSettings(), Keywords()


def as_fused(_: Corpus, ranked: Sequence[str]) -> list[str]:
    return list(ranked)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to search. `scale` None is reciprocal rank fusion; `followup` False asks the question alone."""

    name: str
    fusion: FusionSettings = _FUSION
    keywords: Keywords = _KEYWORDS
    context: Context = text_alone
    scale: Scale | None = None
    arrange: Arrange = as_fused
    followup: bool = True

    def merged(self, rankings: Sequence[Ranking]) -> list[Hit]:
        if self.scale is None:
            return fuse(rankings, k=self.fusion.rrf_k)
        return weighted_scores(rankings, self.scale)


def weighted_scores(rankings: Sequence[Ranking], scale: Scale) -> list[Hit]:
    """The weighted sum of the scaled scores, best first; a ranking gives nothing to what it has not found.

    Bruch, Gai, Ingber: "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023.
    """
    totals: dict[str, float] = {}
    for ranking in rankings:
        scaled = scale([hit.score for hit in ranking.hits])
        for hit, score in zip(ranking.hits, scaled, strict=True):
            totals[hit.passage_id] = totals.get(hit.passage_id, 0.0) + ranking.weight * score
    return [Hit(id_, total) for id_, total in sorted(totals.items(), key=lambda item: -item[1])]


def min_max(scores: Sequence[float]) -> list[float]:
    """0 to 1 between the ranking's worst and best."""
    spread = max(scores, default=0.0) - min(scores, default=0.0)
    return [(score - min(scores)) / spread if spread else 1.0 for score in scores]


def deviations(scores: Sequence[float]) -> list[float]:
    """In standard deviations above the ranking's worst: z-scores, moved so that the last hit has 0."""
    spread = float(np.std(scores)) if scores else 0.0
    return [(score - min(scores)) / spread if spread else 1.0 for score in scores]


def with_following(places: int) -> Arrange:
    """The first `places` hits each with the passage after it, which takes a place as it takes tokens."""

    def arrange(corpus: Corpus, ranked: Sequence[str]) -> list[str]:
        grown: list[str] = []
        for place, id_ in enumerate(ranked):
            after = corpus.following.get(id_) if place < places else None
            grown += [id_] if after is None else [id_, after]
        return list(dict.fromkeys(grown))

    return arrange


def without_near_copies(least_cosine: float) -> Arrange:
    """Leaves out what is as close as that to something better."""

    def arrange(corpus: Corpus, ranked: Sequence[str]) -> list[str]:
        vectors = corpus.vectors[[corpus.places[id_] for id_ in ranked]]
        kept: list[int] = []
        for place in range(len(ranked)):
            if not kept or float(np.max(vectors[kept] @ vectors[place])) < least_cosine:
                kept.append(place)
        return [ranked[place] for place in kept]

    return arrange


DEFAULTS = Variant("the defaults")


def variants(corpus: Corpus) -> Iterator[Variant]:
    """All that can make a difference on this set, the defaults first."""
    yield from fusions()
    yield _keyworded("no stemming", Keywords(stemming=False))
    yield _keyworded("stop words kept", Keywords(stop_words=False))
    neither = Keywords(stemming=False, stop_words=False)
    yield _keyworded("no stemming, stop words kept", neither)
    if any(passage.title for passage in corpus.data.passages.values()):
        for weight in (0, 0.1, 0.5, 1):
            yield _keyworded(f"titles weigh {weight}", Keywords(title_boost=weight))
        yield replace(DEFAULTS, name="title before the embedded text", context=below_title)
    yield from _arranged(corpus)
    if any(question.also for question in corpus.data.questions):
        yield replace(DEFAULTS, name="the last question alone", followup=False)


def contexts() -> Iterator[Variant]:
    """What can be done with headings."""
    yield DEFAULTS
    for weight in (0, 0.1, 0.5, 1):
        yield _keyworded(f"headings weigh {weight}", Keywords(headings_boost=weight))
    yield replace(DEFAULTS, name="heading path before the embedded text", context=below_headings)


def fusions() -> Iterator[Variant]:
    """One ranking, and two made one in other ways."""
    yield DEFAULTS
    base = DEFAULTS.fusion
    yield _fused("vectors alone", replace(base, lexical_weight=0))
    yield _fused("keywords alone", replace(base, dense_weight=0, lexical_weight=1))
    yield _fused(
        "plain rank fusion (k 60, equal weights)", replace(base, rrf_k=60, lexical_weight=1)
    )
    for k in (1, 3, 10, 20, 60):
        yield _fused(f"rank fusion with k {k}", replace(base, rrf_k=k))
    for weight in (1, 1.25, 1.75, 2, 3):
        yield _fused(f"keywords count {weight} times", replace(base, lexical_weight=weight))
    for count in (10, 20, 50, 100):
        yield _fused(f"{count} candidates of each ranking", replace(base, candidates=count))
    scales: Iterable[tuple[str, Scale]] = (("min-max", min_max), ("z-scores", deviations))
    for name, scale in scales:
        for weight in (0.5, 0.75, 1, 1.5, 2):
            fused = _fused(
                f"scores fused by {name}, keywords {weight} times",
                replace(base, lexical_weight=weight),
            )
            yield replace(fused, scale=scale)


def _fused(name: str, fusion: FusionSettings) -> Variant:
    return replace(DEFAULTS, name=name, fusion=fusion)


def _keyworded(name: str, keywords: Keywords) -> Variant:
    return replace(DEFAULTS, name=name, keywords=keywords)


def _arranged(corpus: Corpus) -> Iterator[Variant]:
    if corpus.following:
        for name, places in (("each hit", DEFAULTS.fusion.candidates), ("the first hit", 1)):
            yield replace(
                DEFAULTS, name=f"{name} with the passage after it", arrange=with_following(places)
            )
    for cosine in (0.9, 0.95, 0.98):
        yield replace(
            DEFAULTS,
            name=f"near copies left out (cosine from {cosine})",
            arrange=without_near_copies(cosine),
        )

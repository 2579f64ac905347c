"""The retrieval stages in order: embed and lexical side by side, search, fuse, rerank."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from retrieval.deadline import deadline
from retrieval.embed.base import Vectors
from retrieval.errors import RerankerError
from retrieval.fuse import Ranking, fuse
from retrieval.rerank import Reranker
from retrieval.trace import Trace
from retrieval.types import Candidate, FusionWeights, Hit, Passage, Query, Retrieval, WeightedText

log = logging.getLogger(__name__)


class QueryEmbedder(Protocol):
    async def embed(self, text: str) -> Vectors: ...


class DenseSearch(Protocol):
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]: ...


class LexicalSearch(Protocol):
    def is_quick(self, store_id: str, text: str, k: int) -> bool: ...

    def search(self, store_id: str, text: str, k: int) -> list[Hit]: ...

    def passages(self, store_id: str, ids: Sequence[str]) -> dict[str, Passage]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """What embeds the queries of some stores and searches their vectors.

    `key` names the vector space: stores of one key share the query's vector, and only their cosines can be
    compared. `known_vector` gives the vector of a text where it takes no work.
    """

    key: str
    embedder: QueryEmbedder
    search: DenseSearch
    known_vector: Callable[[str], Vectors | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """How the rankings are made and merged; the defaults' figures are in `docs/decisions/`."""

    candidates: int = 30
    rrf_k: int = 5
    dense_weight: float = 1.0
    lexical_weight: float = 1.5


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """How many of the fused candidates the reranker reads, and how long it may take."""

    candidates: int = 20
    timeout_seconds: float | None = 0.5


class Retriever:
    """Answers a `Query` with ranked candidates; holds no state of its own between queries.

    `known_vector` is as in `Dense`; `elsewhere` gives the Dense of a store whose vectors are not in `dense`.
    """

    def __init__(
        self,
        embedder: QueryEmbedder,
        dense: DenseSearch,
        lexical: LexicalSearch,
        fusion: FusionSettings | None = None,
        reranker: Reranker | None = None,
        rerank: RerankSettings | None = None,
        *,
        known_vector: Callable[[str], Vectors | None] = lambda _: None,
        elsewhere: Callable[[str], Dense | None] = lambda _: None,
    ) -> None:
        self._own = Dense("", embedder, dense, known_vector)
        self._elsewhere = elsewhere
        self._lexical = lexical
        self._fusion = fusion or FusionSettings()
        self._reranker = reranker
        self._rerank = rerank or RerankSettings()

    async def retrieve(
        self, query: Query, trace: Trace, *, until: float | None = None
    ) -> Retrieval:
        """Search every store of the query and merge the rankings.

        Raises RetrievalError (StoreUnavailable, EmbedderError, DeadlineExceeded at `until`, in the event loop's time).
        """
        async with deadline(until) as limit:
            return await self._retrieve(query, trace.limited(limit.expired))

    async def _retrieve(self, query: Query, trace: Trace) -> Retrieval:
        k = max(self._fusion.candidates, query.max_num_results)
        async with _Group() as group:
            dense_task = group.create_task(self._dense_pages(query, k, trace))
            lexical_task = group.create_task(self._lexical_pages(query, k, trace))
        dense, lexical = dense_task.result(), lexical_task.result()
        with trace.stage("fuse"):
            if self._is_quick(query):
                candidates = self._fuse(query, dense, lexical)
            else:
                candidates = await asyncio.to_thread(self._fuse, query, dense, lexical)
        best = max((hit.score for _, page in dense for hit in page), default=None)
        retrieval = Retrieval(query, candidates, best)
        if self._reranker is None or not candidates:
            return retrieval
        return await self._reordered(self._reranker, retrieval, trace)

    async def _dense_pages(
        self, query: Query, k: int, trace: Trace
    ) -> list[tuple[WeightedText, list[Hit]]]:
        """The dense hits of each text of the query, one page for each vector space."""
        spaces = self._spaces(query.store_ids)
        vectors = await self._embed(query.texts, [found[0][1] for found in spaces], trace)
        with trace.stage("search"):
            async with _Group() as group:
                pages = [
                    (
                        text,
                        [
                            group.create_task(dense.search.query(store_id, vector, k))
                            for store_id, dense in found
                        ],
                    )
                    for found, own in zip(spaces, vectors, strict=True)
                    for text, vector in zip(query.texts, own, strict=True)
                ]
        return [(text, _best([task.result() for task in stores], k)) for text, stores in pages]

    def _spaces(self, store_ids: Sequence[str]) -> list[list[tuple[str, Dense]]]:
        """The stores with what searches them, those of one vector space together."""
        spaces: dict[str, list[tuple[str, Dense]]] = {}
        for store_id in store_ids:
            dense = self._elsewhere(store_id) or self._own
            spaces.setdefault(dense.key, []).append((store_id, dense))
        return list(spaces.values())

    async def _embed(
        self, texts: Sequence[WeightedText], spaces: Sequence[Dense], trace: Trace
    ) -> list[list[Vectors]]:
        """The vector of each text in each space; without a stage where all of them are known."""
        wanted = [(dense, text.text) for dense in spaces for text in texts]
        vectors = {(d.key, text): d.known_vector(text) for d, text in dict.fromkeys(wanted)}
        missing = [(d, t) for d, t in dict.fromkeys(wanted) if vectors[d.key, t] is None]
        if missing:
            with trace.stage("embed"):
                # Queued in one turn of the loop, so that each embedder gets them as one batch.
                async with _Group() as group:
                    tasks = [group.create_task(d.embedder.embed(text)) for d, text in missing]
            for (dense, text), task in zip(missing, tasks, strict=True):
                vectors[dense.key, text] = task.result()
        else:
            trace.cached.append("embedding")
        return [[_known(vectors[d.key, text.text]) for text in texts] for d in spaces]

    async def _lexical_pages(self, query: Query, k: int, trace: Trace) -> list[list[Hit]]:
        """The keyword hits of each text of the query."""
        with trace.stage("lexical"):
            if self._is_quick(query):
                return self._search_keywords(query, k)
            # One thread hop for all of them, however many texts and stores there are.
            return await asyncio.to_thread(self._search_keywords, query, k)

    def _is_quick(self, query: Query) -> bool:
        """Whether its keyword index is quicker than a hop to a thread, so that the loop may wait for it."""
        k = max(self._fusion.candidates, self._wanted(query))
        return len(query.texts) == 1 == len(query.store_ids) and self._lexical.is_quick(
            query.store_ids[0], query.text, k
        )

    def _search_keywords(self, query: Query, k: int) -> list[list[Hit]]:
        return [
            _best([self._lexical.search(store, text.text, k) for store in query.store_ids], k)
            for text in query.texts
        ]

    def _fuse(
        self,
        query: Query,
        dense: Sequence[tuple[WeightedText, list[Hit]]],
        lexical: Sequence[list[Hit]],
    ) -> tuple[Candidate, ...]:
        settings = self._fusion
        weights = query.weights or FusionWeights(settings.dense_weight, settings.lexical_weight)
        rankings = [Ranking("search", page, text.dense * weights.dense) for text, page in dense] + [
            Ranking("lexical", page, text.lexical * weights.lexical)
            for text, page in zip(query.texts, lexical, strict=True)
        ]
        # The rankings of a follow-up name up to four times as many; the tail of them is not worth reading.
        fused = fuse(rankings, k=settings.rrf_k)[
            : max(2 * settings.candidates, query.max_num_results)
        ]
        passages = self._passages(query, fused)
        fused = [hit for hit in fused if hit.passage_id in passages]
        scores, ranks = _by_stage(rankings, passages)
        if len(dense) == 1 and not any(text.lexical * weights.lexical for text in query.texts):
            # One dense ranking keeps its order, and a cosine says more than a rank.
            fused = [replace(hit, score=_clamped(scores[hit.passage_id])) for hit in fused]
        return tuple(
            Candidate(
                passages[hit.passage_id], hit.score, scores[hit.passage_id], ranks[hit.passage_id]
            )
            for hit in fused
        )

    def _passages(self, query: Query, fused: Sequence[Hit]) -> dict[str, Passage]:
        """The passages of the best hits, as many as are looked at; reading one costs more than ranking it.

        A vector whose passage is unknown belongs to a write in progress or a replaced file: the next ones
        stand in for it.
        """
        wanted = self._wanted(query)
        found: dict[str, Passage] = {}
        start = 0
        while len(found) < wanted and start < len(fused):
            ids = [hit.passage_id for hit in fused[start : start + wanted - len(found)]]
            for store_id in query.store_ids:
                found |= self._lexical.passages(store_id, ids)
            start += len(ids)
        return found

    def _wanted(self, query: Query) -> int:
        """How many passages are looked at."""
        return max(query.enough, self._rerank.candidates if self._reranker else 0)

    async def _reordered(self, reranker: Reranker, fused: Retrieval, trace: Trace) -> Retrieval:
        """The best candidates in the reranker's order; in the fused one where it fails or is too slow."""
        query = fused.query
        head = [
            replace(
                each,
                scores={**each.scores, "fuse": each.score},
                ranks={**each.ranks, "fuse": rank},
            )
            for rank, each in enumerate(
                fused.candidates[: max(self._rerank.candidates, query.max_num_results)], start=1
            )
        ]
        try:
            with trace.stage("rerank"):
                async with asyncio.timeout(self._rerank.timeout_seconds):
                    ordered = tuple(await reranker.rerank(query.text, head))
                    return replace(fused, candidates=ordered)
        except TimeoutError:
            log.warning("reranking took longer than rerank_timeout_seconds; the fused order stays")
        except RerankerError as error:
            log.warning("%s; the fused order stays", error)
        return replace(fused, whole=False)


class _Group(asyncio.TaskGroup):
    """A task group that raises its first real error itself, not an ExceptionGroup around it."""

    async def __aexit__(self, *args: object) -> None:
        try:
            await super().__aexit__(*args)  # type: ignore[arg-type]
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            raise first from first.__cause__  # which the log must know, and `None` would take away


def _known(vector: Vectors | None) -> Vectors:
    assert vector is not None
    return vector


def _clamped(scores: Mapping[str, float]) -> float:
    """The cosine as a score, 0..1."""
    return min(max(scores["search"], 0.0), 1.0)


def _best(pages: Iterable[Sequence[Hit]], k: int) -> list[Hit]:
    """The k best hits over all stores; a single store keeps its own order."""
    return sorted((hit for page in pages for hit in page), key=lambda hit: -hit.score)[:k]


def _by_stage(
    rankings: Sequence[Ranking], wanted: Iterable[str]
) -> tuple[Mapping[str, dict[str, float]], Mapping[str, dict[str, int]]]:
    """The wanted passages' scores and ranks (from 1) at each stage: the best, where several texts found one."""
    scores: dict[str, dict[str, float]] = {passage_id: {} for passage_id in wanted}
    ranks: dict[str, dict[str, int]] = {passage_id: {} for passage_id in scores}
    for ranking in rankings:
        stage = ranking.stage
        for rank, hit in enumerate(ranking.hits, start=1):
            own = scores.get(hit.passage_id)
            if own is not None:
                own[stage] = max(hit.score, own.get(stage, hit.score))
                places = ranks[hit.passage_id]
                places[stage] = min(rank, places.get(stage, rank))
    return scores, ranks

"""The retrieval stages in order: embed and lexical side by side, search, fuse."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from retrieval.embed.base import Vectors
from retrieval.errors import DeadlineExceeded
from retrieval.fuse import Ranking, fuse
from retrieval.trace import Trace
from retrieval.types import Candidate, Hit, Passage, Query, Retrieval


class QueryEmbedder(Protocol):
    async def embed(self, text: str) -> Vectors: ...


class DenseSearch(Protocol):
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]: ...


class LexicalSearch(Protocol):
    def search(self, store_id: str, text: str, k: int) -> list[Hit]: ...

    def passages(self, store_id: str, ids: Sequence[str]) -> dict[str, Passage]: ...


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """How the rankings are made and merged; the defaults' figures are in `docs/decisions/`."""

    candidates: int = 20
    rrf_k: int = 10
    dense_weight: float = 1.0
    lexical_weight: float = 2.0


class Retriever:
    """Answers a `Query` with ranked candidates; holds no state of its own between queries."""

    def __init__(
        self,
        embedder: QueryEmbedder,
        dense: DenseSearch,
        lexical: LexicalSearch,
        fusion: FusionSettings | None = None,
    ) -> None:
        self._embedder = embedder
        self._dense = dense
        self._lexical = lexical
        self._fusion = fusion or FusionSettings()

    async def retrieve(
        self, query: Query, trace: Trace, *, timeout_seconds: float | None = None
    ) -> Retrieval:
        """Search every store of the query and merge the rankings.

        Raises RetrievalError (StoreUnavailable, EmbedderError, DeadlineExceeded after `timeout_seconds`).
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._retrieve(query, trace)
        except TimeoutError:
            raise DeadlineExceeded(
                f"retrieval took longer than {timeout_seconds} s (retrieval_timeout_seconds)"
            ) from None

    async def _retrieve(self, query: Query, trace: Trace) -> Retrieval:
        k = max(self._fusion.candidates, query.max_num_results)
        async with _Group() as group:
            dense_task = group.create_task(self._dense_hits(query, k, trace))
            lexical_task = group.create_task(self._lexical_hits(query, k, trace))
        dense, lexical = dense_task.result(), lexical_task.result()
        with trace.stage("fuse"):
            candidates = await asyncio.to_thread(self._fuse, query, dense, lexical)
        best = max((hit.score for hit in dense), default=None)
        return Retrieval(query, candidates, best)

    async def _dense_hits(self, query: Query, k: int, trace: Trace) -> list[Hit]:
        with trace.stage("embed"):
            vector = await self._embedder.embed(query.text)
        with trace.stage("search"):
            async with _Group() as group:
                pages = [
                    group.create_task(self._dense.query(store_id, vector, k))
                    for store_id in query.store_ids
                ]
        return _best([page.result() for page in pages], k)

    async def _lexical_hits(self, query: Query, k: int, trace: Trace) -> list[Hit]:
        with trace.stage("lexical"):
            pages = await asyncio.gather(
                *(
                    asyncio.to_thread(self._lexical.search, store_id, query.text, k)
                    for store_id in query.store_ids
                )
            )
        return _best(pages, k)

    def _fuse(self, query: Query, dense: list[Hit], lexical: list[Hit]) -> tuple[Candidate, ...]:
        rankings = [
            Ranking("search", dense, self._fusion.dense_weight),
            Ranking("lexical", lexical, self._fusion.lexical_weight),
        ]
        fused = fuse(rankings, k=self._fusion.rrf_k)
        passages: dict[str, Passage] = {}
        for store_id in query.store_ids:
            passages |= self._lexical.passages(store_id, [hit.passage_id for hit in fused])
        scores = _scores_by_stage(rankings)
        # A vector whose passage is unknown belongs to a write in progress or a replaced file: not visible.
        return tuple(
            Candidate(passages[hit.passage_id], hit.score, scores[hit.passage_id])
            for hit in fused
            if hit.passage_id in passages
        )


class _Group(asyncio.TaskGroup):
    """A task group that raises its first real error itself, not an ExceptionGroup around it."""

    async def __aexit__(self, *args: object) -> None:
        try:
            await super().__aexit__(*args)  # type: ignore[arg-type]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


def _best(pages: Iterable[Sequence[Hit]], k: int) -> list[Hit]:
    """The k best hits over all stores; a single store keeps its own order."""
    return sorted((hit for page in pages for hit in page), key=lambda hit: -hit.score)[:k]


def _scores_by_stage(rankings: Sequence[Ranking]) -> Mapping[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for ranking in rankings:
        for hit in ranking.hits:
            scores.setdefault(hit.passage_id, {})[ranking.stage] = hit.score
    return scores

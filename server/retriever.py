"""Retrieval as the settings say it is: how rankings are merged and reranked, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from retrieval.cache import Bounds, Cache
from retrieval.embed import Vectors
from retrieval.lexical import LexicalIndex
from retrieval.pipeline import (
    Dense,
    DenseSearch,
    FusionSettings,
    QueryEmbedder,
    RerankSettings,
    Retriever,
)
from retrieval.remember import (
    CachedEmbedder,
    CachedRetriever,
    RetrievalKey,
    retrieval_bytes,
    vector_bytes,
)
from retrieval.rerank import Reranker, open_reranker
from retrieval.types import Retrieval
from server.conversation import Conversations, blocks_bytes
from server.queries import FollowUpWeights
from server.settings import Settings
from server.start import StartTrace
from server.telemetry.metrics import CacheCounts, Metrics

#: Turns that are remembered; the bytes are the tighter bound.
MAX_CONVERSATIONS = 100_000
Progress = Callable[[str], None]


def fusion_settings(settings: Settings) -> FusionSettings:
    """How the settings say that rankings are made and merged; the same for the server, `search` and `eval`."""
    return FusionSettings(
        candidates=settings.candidates,
        rrf_k=settings.rrf_k,
        dense_weight=settings.dense_weight,
        lexical_weight=settings.lexical_weight,
    )


def followup_weights(settings: Settings) -> FollowUpWeights:
    """How much a follow-up's searches together with the turn before it weigh, by the settings."""
    return FollowUpWeights(settings.followup_dense_weight, settings.followup_lexical_weight)


@asynccontextmanager
async def reranker_of(
    settings: Settings, progress: Progress = lambda _: None, start: StartTrace | None = None
) -> AsyncIterator[Reranker | None]:
    """The configured reranker, or None; `start` times it. Raises RerankerError."""
    if settings.reranker is None:
        yield None
        return
    progress(f"loading the reranker {settings.reranker}")
    with (StartTrace() if start is None else start).step("reranker"):
        reranker = await asyncio.to_thread(open_reranker, settings.reranker, settings.embed_threads)
    try:
        yield reranker
    finally:
        await reranker.close()


@dataclass(frozen=True, slots=True)
class Caches:
    """What retrieval remembers, for all versions of the index together: their keys hold the version."""

    vectors: Cache[tuple[str, str], Vectors]
    retrievals: Cache[RetrievalKey, Retrieval]
    conversations: Conversations

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> Caches:
        size, seconds = settings.cache_bytes, settings.cache_ttl_seconds
        return cls(
            Cache(
                Bounds(settings.embedding_cache_entries, size, seconds),
                vector_bytes,
                observer=CacheCounts(metrics, "embedding"),
            ),
            Cache(
                Bounds(settings.retrieval_cache_entries, size, seconds),
                retrieval_bytes,
                keeps=lambda retrieval: retrieval.whole,
                observer=CacheCounts(metrics, "retrieval"),
            ),
            Conversations(
                Cache(
                    Bounds(MAX_CONVERSATIONS, size, seconds),
                    blocks_bytes,
                    observer=CacheCounts(metrics, "conversation"),
                )
            ),
        )


@dataclass(frozen=True, slots=True)
class VersionedStamps:
    """A keyword index's commits, of one published version: another version's copy may have the same."""

    version: int
    lexical: LexicalIndex

    def stamp(self, store_id: str) -> Hashable | None:
        stamp = self.lexical.stamp(store_id)
        return None if stamp is None else (self.version, stamp)


def uncached_retriever(
    settings: Settings,
    embedder: QueryEmbedder,
    dense: DenseSearch,
    lexical: LexicalIndex,
    reranker: Reranker | None = None,
    *,
    known_vector: Callable[[str], Vectors | None] = lambda _: None,
    elsewhere: Callable[[str], Dense | None] = lambda _: None,
) -> Retriever:
    """The retriever as the settings say it is; `known_vector` and `elsewhere` as in `Retriever`."""
    return Retriever(
        embedder,
        dense,
        lexical,
        fusion_settings(settings),
        reranker,
        RerankSettings(settings.rerank_candidates, settings.rerank_timeout_seconds),
        known_vector=known_vector,
        elsewhere=elsewhere,
    )


def cached_retriever(
    settings: Settings,
    caches: Caches,
    embedder: QueryEmbedder,
    dense: DenseSearch,
    lexical: LexicalIndex,
    reranker: Reranker | None = None,
    *,
    elsewhere: Callable[[str], Dense | None] = lambda _: None,
    version: int = 0,
) -> CachedRetriever:
    """The retriever as the settings say it is, behind its caches; `elsewhere` as in `Retriever`."""
    remembering = CachedEmbedder(embedder, caches.vectors)

    def remembered(index_name: str) -> Dense | None:
        found = elsewhere(index_name)
        if found is None:
            return None
        other = CachedEmbedder(found.embedder, caches.vectors, found.key)
        return replace(found, embedder=other, known_vector=other.known)

    retriever = uncached_retriever(
        settings,
        remembering,
        dense,
        lexical,
        reranker,
        known_vector=remembering.known,
        elsewhere=remembered,
    )
    return CachedRetriever(retriever, VersionedStamps(version, lexical), caches.retrievals)

"""What was embedded and found before: query vectors by text, retrievals by question and state of the stores."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from typing import Protocol

from retrieval.cache import Cache, Found
from retrieval.deadline import deadline
from retrieval.embed.base import Vectors
from retrieval.pipeline import QueryEmbedder
from retrieval.trace import Trace
from retrieval.types import Candidate, Query, Retrieval

#: Dictionary slot, key and entry objects of one entry, roughly.
_ENTRY_BYTES = 500
#: A candidate's own objects beside its passage's texts, roughly.
_CANDIDATE_BYTES = 1400


class CachedEmbedder:
    """A `QueryEmbedder` that remembers vectors; embedders that share a cache have a `space` each."""

    def __init__(
        self, embedder: QueryEmbedder, cache: Cache[tuple[str, str], Vectors], space: str = ""
    ) -> None:
        self._embedder = embedder
        self._cache = cache
        self._space = space

    def known(self, text: str) -> Vectors | None:
        """The vector of a text that was embedded before."""
        return self._cache.peek((self._space, text))

    async def embed(self, text: str) -> Vectors:
        """As the embedder's own; the array is shared, and so read-only. Raises EmbedderError."""

        async def load() -> Vectors:
            vector = (await self._embedder.embed(text)).copy()  # a view would keep its whole batch
            vector.flags.writeable = False
            return vector

        return (await self._cache.get((self._space, text), load)).value


def vector_bytes(key: tuple[str, str], vector: Vectors) -> int:
    """About what a kept vector takes."""
    return vector.nbytes + sys.getsizeof(key[1]) + _ENTRY_BYTES


class Retrieves(Protocol):
    async def retrieve(
        self, query: Query, trace: Trace, *, until: float | None = None
    ) -> Retrieval: ...


class Stamps(Protocol):
    """What moves when a store's visible text moves, in the same step: the keyword index's commit."""

    def stamp(self, store_id: str) -> Hashable | None: ...


RetrievalKey = tuple[Query, tuple[Hashable, ...], tuple[Hashable, ...]]


class CachedRetriever:
    """A `Retriever` that remembers what each state of the stores answered.

    The key is the query and the commit of every store's keyword index, read before the search. That commit
    is the switch that makes text visible or takes it away, so what was found before it is never asked for
    again: not between the switch and the catalog's new version, nor when the writer dies in between. How the
    retriever fuses and reranks is no part of the key: it never changes, and the cache is the retriever's own.
    A store without an index is not cached.
    """

    def __init__(
        self, retriever: Retrieves, stamps: Stamps, cache: Cache[RetrievalKey, Retrieval]
    ) -> None:
        self._retriever = retriever
        self._stamps = stamps
        self._cache = cache

    def state(self, store_ids: Sequence[str]) -> tuple[Hashable, ...] | None:
        """What moves when the visible text of one of these stores moves; None where one has no index."""
        stamps = tuple(self._stamps.stamp(store_id) for store_id in store_ids)
        return None if None in stamps else stamps

    async def retrieve(
        self,
        query: Query,
        trace: Trace,
        *,
        scope: tuple[Hashable, ...] = (),
        until: float | None = None,
    ) -> Retrieval:
        """As `Retriever.retrieve`; `scope` holds further parts of the key (tenant, the catalog's versions).

        A hit adds no stages to the trace, and neither does waiting for a search that another one began: it
        says `retrieval` in `trace.cached`. The deadline is each caller's own in both. Raises RetrievalError.
        """
        stamps = self.state(query.store_ids)
        if stamps is None:
            return await self._retriever.retrieve(query, trace, until=until)
        async with deadline(until) as limit:
            within = trace.limited(limit.expired)

            async def load() -> Retrieval:
                return await self._retriever.retrieve(query, within)

            found: Found[Retrieval] = await self._cache.get((query, stamps, scope), load)
        if found.outcome != "miss":
            trace.cached.append("retrieval")
        return found.value


def retrieval_bytes(key: RetrievalKey, retrieval: Retrieval) -> int:
    """About what a kept retrieval takes."""
    question = sum(sys.getsizeof(text.text) for text in key[0].texts)
    return _ENTRY_BYTES + question + sum(map(_candidate_bytes, retrieval.candidates))


def _candidate_bytes(candidate: Candidate) -> int:
    passage = candidate.passage
    return _CANDIDATE_BYTES + sum(map(sys.getsizeof, (passage.text, *passage.headings)))

"""Searches of one store that arrive together are one request to Chroma, which costs both sides less."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np

from retrieval.batch import Batcher
from retrieval.embed.base import Vectors
from retrieval.types import Hit

#: Vectors a request: some kilobytes of JSON each, and the first does not wait long for the last.
MAX_VECTORS = 32

#: A request that takes longer has lost its way, or its server is far: others go beside it, not behind it.
PATIENCE_SECONDS = 0.05

#: (store_id, vectors of shape (n, dim), k) -> the k nearest rows to each.
SearchMany = Callable[[str, Vectors, int], Awaitable[Sequence[list[Hit]]]]
Batches = Batcher[Vectors, list[Hit]]


class SearchBatcher:
    """Searches by one vector, sent together where they arrive together; used from one event loop.

    Searches of different stores, or for another number of hits, do not wait for each other.
    """

    def __init__(self, search: SearchMany) -> None:
        self._search = search
        self._busy: dict[tuple[str, int, int], Batches] = {}

    @property
    def busy(self) -> int:
        """How many kinds of search are under way."""
        return len(self._busy)

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        """The `k` nearest rows to `vector` of shape (dim,). Raises what `search` raises."""
        key = (store_id, k, len(vector))
        batches = self._busy.get(key)
        if batches is None:
            batches = self._busy[key] = Batcher(
                partial(self._together, store_id, k),
                MAX_VECTORS,
                patience_seconds=PATIENCE_SECONDS,
                on_idle=lambda: self._busy.pop(key, None),
            )
        return await batches.do(vector)

    async def _together(self, store_id: str, k: int, vectors: list[Vectors]) -> Sequence[list[Hit]]:
        return await self._search(store_id, np.stack(vectors), k)

"""Reads of collections that something else fills, over the same connection as our own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from operator import methodcaller
from typing import Any

import numpy as np

from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.search.adopted import (
    PAGE_ROWS,
    SAMPLE_ROWS,
    CollectionFacts,
    Row,
)
from retrieval.search.chroma import ChromaStore, on_collection


class ChromaCollections(ChromaStore):
    """The CollectionReader over a Chroma server."""

    async def facts(self, collection: str) -> CollectionFacts:
        """What the collection says of itself. Raises StoreUnavailable where there is none, or no row in it."""
        rows: int = await self._ask(collection, methodcaller("count"))
        found = await self._ask(
            collection,
            methodcaller(
                "get", limit=SAMPLE_ROWS, include=["embeddings", "documents", "metadatas"]
            ),
        )
        vectors = np.asarray(found["embeddings"], np.float32)
        if rows == 0 or vectors.ndim != 2:
            raise StoreUnavailable(f"the collection {collection!r} holds no vectors")
        sample = _rows(found["ids"], found["documents"], found["metadatas"])
        space = await self._ask(collection, _space)
        return CollectionFacts(
            rows=rows,
            space=space,
            sample=tuple(replace(row, vector=v) for row, v in zip(sample, vectors, strict=True)),
        )

    async def pages(self, collection: str) -> AsyncIterator[list[Row]]:
        """Every row's text and metadata, without its vector."""
        offset = 0
        while True:
            page = methodcaller(
                "get", limit=PAGE_ROWS, offset=offset, include=["documents", "metadatas"]
            )
            found = await self._ask(collection, page)
            if not found["ids"]:
                return
            yield _rows(found["ids"], found["documents"], found["metadatas"])
            offset += len(found["ids"])

    async def nearest(
        self, collection: str, vector: Vectors, k: int, *, vectors: bool
    ) -> list[Row]:
        """The `k` rows that Chroma finds nearest, with their vectors if asked for."""
        include = ["documents", "metadatas", "distances", *(["embeddings"] if vectors else [])]
        ask = methodcaller(
            "query", query_embeddings=vector.reshape(1, -1), n_results=k, include=include
        )
        found = await self._ask(collection, ask)
        given = found["embeddings"][0] if vectors else [None] * len(found["ids"][0])
        plain = _rows(found["ids"][0], found["documents"][0], found["metadatas"][0])
        return [
            replace(
                row,
                distance=float(distance),
                vector=None if one is None else np.asarray(one, np.float32),
            )
            for row, distance, one in zip(plain, found["distances"][0], given, strict=True)
        ]

    async def _ask(self, collection: str, call: Any) -> Any:
        async with self._answering(self._query_timeout_seconds) as connection:
            found = await on_collection(connection, collection, call)
            if found is None:
                raise StoreUnavailable(f"there is no collection named {collection!r}")
        return found


def _rows(
    ids: list[str], documents: list[str | None], metadatas: list[Mapping[str, Any] | None]
) -> list[Row]:
    return [
        Row(key, document, metadata or {})
        for key, document, metadata in zip(ids, documents, metadatas, strict=True)
    ]


async def _space(collection: Any) -> str:
    """The distance of a collection: its configuration's, else that of its metadata (older Chromas), else l2."""
    configured: Mapping[str, Any] = collection.configuration_json or {}
    for index in ("hnsw", "spann"):
        space = (configured.get(index) or {}).get("space")
        if space:
            return str(space)
    return str((collection.metadata or {}).get("hnsw:space", "l2"))

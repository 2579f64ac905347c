"""Queries that arrive together are embedded together; a lone query never waits for company."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from retrieval.batch import Batcher
from retrieval.embed.base import Embedder, Vectors
from retrieval.errors import EmbedderError

#: Queries a batch: enough to amortise a call, few enough that the first does not wait for the last.
MAX_QUERIES = 32


class QueryBatcher:
    """Embeds queries on one worker thread, each time all that are queued; used from one event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed-query")
        self._batches: Batcher[str, Vectors] = Batcher(self._together, MAX_QUERIES)
        self._closed = False

    async def embed(self, text: str) -> Vectors:
        """The query's unit vector, shape (dimension,). Raises EmbedderError."""
        if self._closed:
            raise EmbedderError("the embedder is closed: the server is stopping")
        return await self._batches.do(text)

    async def close(self) -> None:
        """Fail what is queued, let the batch in hand finish, and end the thread."""
        self._closed = True
        await self._batches.close(EmbedderError("the embedder was closed before this query"))
        self._thread.shutdown()

    async def _together(self, texts: list[str]) -> Sequence[Vectors]:
        loop = asyncio.get_running_loop()
        try:
            vectors = await loop.run_in_executor(self._thread, self._embedder.embed_queries, texts)
        except Exception as error:
            if len(texts) > 1:
                # What it says may quote one of them, and goes to whoever asked the others.
                kind = type(error.__cause__ or error).__name__
                raise EmbedderError(
                    f"{len(texts)} queries could not be embedded ({kind})"
                ) from error
            raise EmbedderError(str(error) or type(error).__name__) from error
        if len(vectors) != len(texts):
            raise EmbedderError(f"the embedder made {len(vectors)} vectors of {len(texts)} queries")
        return list(vectors)

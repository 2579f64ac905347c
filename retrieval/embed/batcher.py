"""Queries that arrive together are embedded together; a lone query never waits for company."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from retrieval.embed.base import Embedder, Vectors
from retrieval.errors import EmbedderError

#: Queries a batch: enough to amortise a call, few enough that the first does not wait for the last.
MAX_QUERIES = 32


class QueryBatcher:
    """Embeds queries on one worker thread, each time all that are queued; used from one event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._queued: deque[tuple[str, asyncio.Future[Vectors]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed-query")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def embed(self, text: str) -> Vectors:
        """The query's unit vector, shape (dimension,). Raises EmbedderError."""
        if self._closed:
            raise EmbedderError("the embedder is closed: the server is stopping")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Vectors] = loop.create_future()
        self._queued.append((text, waiter))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await waiter

    async def close(self) -> None:
        """Fail what is queued, let the batch in hand finish, and end the thread."""
        self._closed = True
        for _, waiter in self._queued:
            if not waiter.done():
                waiter.set_exception(EmbedderError("the embedder was closed before this query"))
        self._queued.clear()
        if self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.shutdown()

    async def _work(self) -> None:
        while batch := self._take():
            texts = [text for text, _ in batch]
            try:
                vectors = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._embedder.embed_queries, texts
                )
                for (_, waiter), vector in zip(batch, vectors, strict=True):
                    if not waiter.done():
                        waiter.set_result(vector)
            except Exception as error:  # whatever it was, it belongs to these waiters alone
                for _, waiter in batch:
                    if not waiter.done():
                        waiter.set_exception(_failure(error))

    def _take(self) -> list[tuple[str, asyncio.Future[Vectors]]]:
        """What is queued now and still wanted, at most one batch."""
        batch: list[tuple[str, asyncio.Future[Vectors]]] = []
        while self._queued and len(batch) < MAX_QUERIES:
            item = self._queued.popleft()
            if not item[1].done():
                batch.append(item)
        return batch


def _failure(error: Exception) -> EmbedderError:
    """One exception a waiter: a shared one would gather every waiter's traceback."""
    own = EmbedderError(str(error) or type(error).__name__)
    own.__cause__ = error
    return own

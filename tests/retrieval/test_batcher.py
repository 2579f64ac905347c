"""The query batcher: together when queued together, alone when alone, each waiter for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import ContextVar

import numpy as np
import pytest

from retrieval.batch import Batcher
from retrieval.embed import QueryBatcher, Vectors
from retrieval.embed.batcher import MAX_QUERIES
from retrieval.errors import EmbedderError

pytestmark = pytest.mark.anyio


class GatedEmbedder:
    """An embedder whose vector is the text's length, and whose calls wait at a gate."""

    name = "gated"
    dimension = 1
    max_tokens = 8

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        self.threads.add(threading.get_ident())
        self.started.release()
        assert self.gate.wait(10)
        if "bad" in texts:
            raise EmbedderError(f"cannot read {texts}")
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return self.embed_queries(texts)

    def count_tokens(self, text: str) -> int:
        return len(text)

    async def wait_started(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=10)


async def queue(batcher: QueryBatcher, texts: Sequence[str]) -> list[asyncio.Task[Vectors]]:
    """Start one `embed` a text and let each reach its wait."""
    tasks = [asyncio.create_task(batcher.embed(text)) for text in texts]
    await asyncio.sleep(0)
    return tasks


async def test_what_queues_behind_a_batch_is_the_next_batch() -> None:
    embedder = GatedEmbedder()
    batcher = QueryBatcher(embedder)
    first = await queue(batcher, ["a"])
    await embedder.wait_started()
    rest = await queue(batcher, ["bb", "ccc", "dddd"])
    embedder.gate.set()
    vectors = await asyncio.gather(*first, *rest)
    assert embedder.batches == [["a"], ["bb", "ccc", "dddd"]]
    assert [vector.tolist() for vector in vectors] == [[1], [2], [3], [4]]
    assert len(embedder.threads) == 1
    await batcher.close()


async def test_a_batch_is_bounded() -> None:
    embedder = GatedEmbedder()
    embedder.gate.set()
    batcher = QueryBatcher(embedder)
    texts = ["x" * n for n in range(2 * MAX_QUERIES + 1)]
    vectors = await asyncio.gather(*(batcher.embed(text) for text in texts))
    assert [vector[0] for vector in vectors] == [len(text) for text in texts]
    assert [len(batch) for batch in embedder.batches] == [MAX_QUERIES, MAX_QUERIES, 1]
    await batcher.close()


async def test_an_error_fails_its_own_batch_only() -> None:
    embedder = GatedEmbedder()
    batcher = QueryBatcher(embedder)
    alone = await queue(batcher, ["bad"])
    await embedder.wait_started()
    good = await queue(batcher, ["good"])
    embedder.gate.set()
    failed, fine = await asyncio.gather(*alone, *good, return_exceptions=True)
    assert isinstance(failed, EmbedderError)
    assert str(failed) == "cannot read ['bad']"
    assert fine == np.array([4.0])
    await batcher.close()


async def test_an_error_tells_nobody_what_others_asked() -> None:
    embedder = GatedEmbedder()
    batcher = QueryBatcher(embedder)
    first = await queue(batcher, ["a"])
    await embedder.wait_started()
    together = await queue(batcher, ["bad", "beside"])
    embedder.gate.set()
    outcomes = await asyncio.gather(*first, *together, return_exceptions=True)
    assert embedder.batches[1] == ["bad", "beside"]
    for outcome in outcomes[1:]:
        assert isinstance(outcome, EmbedderError)
        assert str(outcome) == "2 queries could not be embedded (EmbedderError)"
    assert outcomes[1] is not outcomes[2]
    await batcher.close()


async def test_a_waiter_that_leaves_disturbs_nobody() -> None:
    embedder = GatedEmbedder()
    batcher = QueryBatcher(embedder)
    running = await queue(batcher, ["a", "bb"])
    await embedder.wait_started()
    queued = await queue(batcher, ["ccc", "dddd"])
    running[0].cancel()
    queued[0].cancel()
    await asyncio.sleep(0)
    embedder.gate.set()
    outcomes = await asyncio.gather(*running, *queued, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert outcomes[1] == np.array([2.0])
    assert outcomes[3] == np.array([4.0])
    assert embedder.batches == [["a", "bb"], ["dddd"]]
    await batcher.close()


async def test_close_fails_what_is_queued_and_finishes_what_runs() -> None:
    embedder = GatedEmbedder()
    batcher = QueryBatcher(embedder)
    running = await queue(batcher, ["a"])
    await embedder.wait_started()
    queued = await queue(batcher, ["bb"])
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(EmbedderError, match="closed"):
        await queued[0]
    embedder.gate.set()
    await closing
    assert (await running[0]).tolist() == [1]
    with pytest.raises(EmbedderError, match="closed"):
        await batcher.embed("late")


async def test_an_embedder_that_returns_too_few_vectors_fails_instead_of_hanging() -> None:
    class Short(GatedEmbedder):
        def embed_queries(self, texts: Sequence[str]) -> Vectors:
            return np.zeros((len(texts) - 1, 1), dtype=np.float32)

    batcher = QueryBatcher(Short())
    with pytest.raises(EmbedderError):
        await asyncio.wait_for(batcher.embed("a"), 10)
    await batcher.close()


async def test_work_for_several_runs_in_the_context_of_none() -> None:
    whose = ContextVar("whose", default="nobody")

    async def work(items: list[int]) -> list[str]:
        return [whose.get() for _ in items]

    whose.set("the first")
    assert await Batcher(work, 8).do(1) == "nobody"

"""Searches that arrive together travel together; those of another store go their own way."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from retrieval.embed.base import Vectors
from retrieval.errors import StoreUnavailable
from retrieval.search.batcher import MAX_VECTORS, SearchBatcher
from retrieval.types import Hit

pytestmark = pytest.mark.anyio


class GatedSearch:
    """Finds for each vector one hit, named after its first number; each search waits at its store's gate."""

    def __init__(self, *closed: str) -> None:
        self.asked: list[tuple[str, list[float], int]] = []
        self.gates = {store_id: asyncio.Event() for store_id in closed}
        self.ended: list[list[float]] = []
        self._news = asyncio.Condition()

    async def begun(self, count: int) -> None:
        """Return when so many searches were begun."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.asked) >= count)

    async def __call__(self, store_id: str, vectors: Vectors, k: int) -> list[list[Hit]]:
        self.asked.append((store_id, vectors[:, 0].tolist(), k))
        async with self._news:
            self._news.notify_all()
        if store_id in self.gates:
            try:
                await self.gates[store_id].wait()
            except asyncio.CancelledError:
                self.ended.append(vectors[:, 0].tolist())
                raise
        if store_id == "broken":
            raise StoreUnavailable("it does not answer")
        return [[Hit(f"{store_id}/{first:g}", 1.0)] for first in vectors[:, 0]]


def vector(*values: float) -> Vectors:
    return np.array(values, dtype=np.float32)


async def start(
    batcher: SearchBatcher, *asked: tuple[str, Vectors, int]
) -> list[asyncio.Task[list[Hit]]]:
    """Begin the searches, and let each reach its wait."""
    tasks = [asyncio.create_task(batcher.query(*one)) for one in asked]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_what_arrives_during_a_search_is_the_next_one() -> None:
    search = GatedSearch("a")
    batcher = SearchBatcher(search)
    first = await start(batcher, ("a", vector(1), 5))
    rest = await start(batcher, *(("a", vector(n), 5) for n in (2, 3, 4)))
    search.gates["a"].set()
    hits = await asyncio.gather(*first, *rest)
    assert [page[0].passage_id for page in hits] == ["a/1", "a/2", "a/3", "a/4"]
    assert search.asked == [("a", [1], 5), ("a", [2, 3, 4], 5)]


async def test_other_stores_numbers_and_sizes_do_not_wait() -> None:
    search = GatedSearch("a")
    batcher = SearchBatcher(search)
    held = await start(batcher, ("a", vector(1), 5))
    assert [hit.passage_id for hit in await batcher.query("b", vector(7), 5)] == ["b/7"]
    more = await start(batcher, ("a", vector(2), 6), ("a", vector(3, 3), 5))
    assert [one[1:] for one in search.asked if one[0] == "a"] == [([1], 5), ([2], 6), ([3], 5)]
    search.gates["a"].set()
    await asyncio.gather(*held, *more)


async def test_a_request_is_bounded() -> None:
    search = GatedSearch()
    batcher = SearchBatcher(search)
    await asyncio.gather(*(batcher.query("a", vector(n), 1) for n in range(MAX_VECTORS + 1)))
    assert [len(vectors) for _, vectors, _ in search.asked] == [MAX_VECTORS, 1]


async def test_a_failed_search_fails_who_asked_it_and_no_later_one() -> None:
    search = GatedSearch()
    batcher = SearchBatcher(search)
    asked = [batcher.query("broken", vector(n), 1) for n in (1, 2)]
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in failed] == ["it does not answer"] * 2
    assert isinstance(failed[0], StoreUnavailable)
    assert failed[0] is not failed[1]
    assert (await batcher.query("a", vector(1), 1))[0].passage_id == "a/1"


async def test_nothing_is_kept_of_a_store_that_nobody_searches() -> None:
    search = GatedSearch("a")
    batcher = SearchBatcher(search)
    left, stays = await start(batcher, ("a", vector(1), 1), ("a", vector(2), 1))
    left.cancel()
    search.gates["a"].set()
    await stays
    await asyncio.gather(left, return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
    assert batcher.busy == 0


async def test_a_search_that_nobody_waits_for_is_ended() -> None:
    search = GatedSearch("a")
    batcher = SearchBatcher(search)
    first, second = await start(batcher, ("a", vector(1), 1), ("a", vector(2), 1))
    first.cancel()
    await asyncio.sleep(0)
    assert search.ended == []
    second.cancel()
    await asyncio.wait([first, second])
    for _ in range(5):
        await asyncio.sleep(0)
    assert (search.ended, batcher.busy) == ([[1, 2]], 0)


async def test_a_search_that_takes_long_holds_nobody_up() -> None:
    search = GatedSearch("a")
    batcher = SearchBatcher(search)
    (lost,) = await start(batcher, ("a", vector(1), 1))
    others = await start(batcher, ("a", vector(2), 1), ("a", vector(3), 1))
    async with asyncio.timeout(10):
        await search.begun(2)
    assert [vectors for _, vectors, _ in search.asked] == [[1], [2, 3]]
    search.gates["a"].set()
    await asyncio.gather(lost, *others)
    assert batcher.busy == 0

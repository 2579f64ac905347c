"""Bounds, time and single flight of the cache; what a cached retrieval may show after a write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cache import Bounds, Cache, Outcome
from retrieval.embed.base import Vectors
from retrieval.errors import DeadlineExceeded, StoreUnavailable
from retrieval.lexical import LexicalIndex, LexicalWriter
from retrieval.pipeline import RerankSettings, Retriever
from retrieval.remember import CachedEmbedder, CachedRetriever, retrieval_bytes
from retrieval.trace import Trace
from retrieval.types import Candidate, Hit, Passage, Query, Retrieval, WeightedText

TTL_SECONDS = 10.0


class Counts:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.evictions = 0
        self.sizes = (0, 0)

    def looked_up(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def evicted(self) -> None:
        self.evictions += 1

    def resized(self, entries: int, size_bytes: int) -> None:
        self.sizes = (entries, size_bytes)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def small(
    counts: Counts | None = None, clock: Clock | None = None, entries: int = 3
) -> Cache[int, int]:
    """Three entries, ten bytes; a value is as large as it says."""
    return Cache(
        Bounds(entries, 10, TTL_SECONDS),
        lambda _, value: value,
        observer=counts,
        clock=clock or Clock(),
    )


class Gate:
    """A load that waits to be told how it ends."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.starts = 0
        self.cancelled = False
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.starts += 1
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return 1


STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 12), st.floats(0, 6, allow_nan=False)), max_size=60
)


@given(STEPS)
def test_bounds_time_and_counts_hold_whatever_is_asked(steps: list[tuple[int, int, float]]) -> None:
    async def play() -> None:
        counts, clock = Counts(), Clock()
        cache = small(counts, clock)
        loaded: dict[int, tuple[int, float]] = {}
        for key, value, seconds in steps:
            clock.now += seconds

            async def load(value: int = value) -> int:
                return value

            found = await cache.get(key, load)
            if found.outcome == "hit":
                kept, since = loaded[key]
                assert found.value == kept
                assert clock.now < since + TTL_SECONDS
            else:
                assert found.value == value
                loaded[key] = (value, clock.now)
            assert len(cache) <= 3
            assert 0 <= cache.size_bytes <= 10
            assert counts.sizes == (len(cache), cache.size_bytes)
        assert len(counts.outcomes) == len(steps)

    asyncio.run(play())


@pytest.mark.anyio
async def test_the_least_recently_used_goes_first() -> None:
    counts = Counts()
    cache = small(counts)

    async def load() -> int:
        return 1

    for key in (1, 2, 3, 1, 4):
        await cache.get(key, load)
    assert [(await cache.get(key, load)).outcome for key in (1, 3, 4, 2)] == [
        "hit", "hit", "hit", "miss",
    ]  # fmt: skip
    assert counts.evictions == 2


@pytest.mark.anyio
async def test_one_load_for_all_who_ask_meanwhile() -> None:
    cache, gate = small(), Gate()
    tasks = [asyncio.ensure_future(cache.get(1, gate)) for _ in range(5)]
    await gate.begun.wait()
    gate.open.set()
    found = await asyncio.gather(*tasks)
    assert gate.starts == 1
    assert [each.outcome for each in found] == ["miss", *["shared"] * 4]
    assert (await cache.get(1, gate)).outcome == "hit"


@pytest.mark.anyio
async def test_who_leaves_takes_nothing_from_the_others_and_the_last_ends_the_load() -> None:
    cache, gate = small(), Gate()
    first, second = (asyncio.ensure_future(cache.get(1, gate)) for _ in range(2))
    await gate.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not gate.cancelled
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert gate.cancelled
    gate.open.set()
    with anyio.fail_after(10):
        assert (await cache.get(1, gate)).outcome == "miss"


@pytest.mark.anyio
async def test_a_failure_is_each_callers_own_and_is_not_kept() -> None:
    cache, gate = small(), Gate()
    gate.error = StoreUnavailable("gone")
    tasks = [asyncio.ensure_future(cache.get(1, gate)) for _ in range(2)]
    await gate.begun.wait()
    gate.open.set()
    one, two = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(one, StoreUnavailable)
    assert isinstance(two, StoreUnavailable)
    assert one is not two
    assert str(one) == "gone"
    gate.error = None
    assert (await cache.get(1, gate)).outcome == "miss"


@pytest.mark.anyio
async def test_a_cache_without_entries_is_off() -> None:
    counts, gate = Counts(), Gate()
    cache = small(counts, entries=0)
    gate.open.set()
    found = await asyncio.gather(cache.get(1, gate), cache.get(1, gate))
    assert [each.outcome for each in found] == ["miss", "miss"]
    assert gate.starts == 2
    assert counts.outcomes == []


class Ones:
    def __init__(self) -> None:
        self.batch = np.ones((4, 3), np.float32)
        self.asked = 0

    async def embed(self, text: str) -> Vectors:  # noqa: ARG002
        self.asked += 1
        return self.batch[0]


@pytest.mark.anyio
async def test_a_kept_vector_is_read_only_and_apart_from_its_batch() -> None:
    ones = Ones()
    cache: Cache[tuple[str, str], Vectors] = Cache(Bounds(4, 1000), lambda _, vector: vector.nbytes)
    embedder = CachedEmbedder(ones, cache)
    assert embedder.known("tea") is None
    vectors = [await embedder.embed("tea") for _ in range(2)]
    assert ones.asked == 1
    assert vectors[0] is vectors[1] is embedder.known("tea")
    assert vectors[0].base is None
    assert not vectors[0].flags.writeable


class NoDense:
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        return []


def write(root: Path, store: str, *texts: str) -> None:
    """Through a writer of its own, as another process has it; no catalog hears of it."""
    with LexicalWriter(root, store) as writer:
        writer.replace_file(
            "file-1", [Passage("file-1", "ab" * 32, i, "a.md", t) for i, t in enumerate(texts)]
        )
        writer.commit()


def remembering(root: Path, counts: Counts) -> CachedRetriever:
    index = LexicalIndex(root)
    return CachedRetriever(
        Retriever(Ones(), NoDense(), index),
        index,
        Cache(Bounds(9, 10**6), retrieval_bytes, keeps=lambda kept: kept.whole, observer=counts),
    )


def texts(retrieval: Retrieval) -> list[str]:
    return [candidate.passage.text for candidate in retrieval.candidates]


@pytest.mark.anyio
async def test_a_commit_hides_what_was_kept_before_any_version_moves(tmp_path: Path) -> None:
    counts = Counts()
    retriever, query = remembering(tmp_path, counts), Query("quagga", ("a",), 4)
    for stand in (("The old quagga.",), ("The new quagga.",), ()):
        write(tmp_path, "a", *stand)
        trace = Trace()
        assert texts(await retriever.retrieve(query, trace)) == list(stand)
        assert trace.records
        again = Trace()
        assert texts(await retriever.retrieve(query, again)) == list(stand)
        assert not again.records
        assert (trace.cached, again.cached) == ([], ["retrieval"])
    assert counts.outcomes == ["miss", "hit"] * 3


@pytest.mark.anyio
async def test_stores_never_share(tmp_path: Path) -> None:
    write(tmp_path, "a", "The quagga of A.")
    write(tmp_path, "b", "The quagga of B.")
    retriever = remembering(tmp_path, Counts())
    for store in ("a", "b", "a"):
        found = await retriever.retrieve(Query("quagga", (store,), 4), Trace())
        assert texts(found) == [f"The quagga of {store.upper()}."]


class Slow:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def retrieve(
        self,
        query: Query,
        trace: Trace,  # noqa: ARG002
        *,
        until: float | None = None,  # noqa: ARG002
    ) -> Retrieval:
        await self.gate()
        return Retrieval(query, ())


class Fixed:
    def stamp(self, store_id: str) -> str:
        return store_id


@pytest.mark.anyio
async def test_a_waiter_keeps_its_own_deadline() -> None:
    gate, query = Gate(), Query("quagga", ("a",), 4)
    cache = CachedRetriever(Slow(gate), Fixed(), Cache(Bounds(9, 10**6), retrieval_bytes))
    patient = asyncio.ensure_future(cache.retrieve(query, Trace()))
    await gate.begun.wait()
    with pytest.raises(DeadlineExceeded, match="retrieval_timeout_seconds"):
        await cache.retrieve(query, Trace(), until=asyncio.get_running_loop().time() + 0.01)
    assert not gate.cancelled
    gate.open.set()
    assert (await patient).candidates == ()


class NeverDense:
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.anyio
async def test_a_load_that_the_deadline_ends_took_too_long(tmp_path: Path) -> None:
    write(tmp_path, "a", "The quagga.")
    index, trace, until = LexicalIndex(tmp_path), Trace(), asyncio.get_running_loop().time() + 0.05
    cache = Cache(Bounds(9, 10**6), retrieval_bytes)
    retriever = CachedRetriever(Retriever(Ones(), NeverDense(), index), index, cache)
    with pytest.raises(DeadlineExceeded):
        await retriever.retrieve(Query("quagga", ("a",), 4), trace, until=until)
    assert {record.stage: record.outcome for record in trace.records}["search"] == "timeout"


@pytest.mark.anyio
async def test_a_known_vector_needs_no_embedding_and_shows_no_stage(tmp_path: Path) -> None:
    write(tmp_path, "a", "The quagga.")
    ones, index = Ones(), LexicalIndex(tmp_path)
    cache: Cache[tuple[str, str], Vectors] = Cache(Bounds(4, 1000), lambda _, vector: vector.nbytes)
    embedder = CachedEmbedder(ones, cache)
    retriever = Retriever(embedder, NoDense(), index, known_vector=embedder.known)
    first, again, other = Trace(), Trace(), Trace()
    await retriever.retrieve(Query("quagga", ("a",), 4), first)
    await retriever.retrieve(Query("quagga", ("a",), 3), again)
    assert ("embed" in first.timings_ms(), first.cached) == (True, [])
    assert ("embed" in again.timings_ms(), again.cached) == (False, ["embedding"])
    assert "search" in again.timings_ms()
    also = (WeightedText("quagga and zebra"),)
    await retriever.retrieve(Query("quagga", ("a",), 4, also), other)
    assert ("embed" in other.timings_ms(), other.cached) == (True, [])
    assert ones.asked == 2


class Stuck:
    """A reranker that never comes to an end, until it is told to."""

    def __init__(self) -> None:
        self.stuck = True

    async def rerank(self, query: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:  # noqa: ARG002
        if self.stuck:
            await asyncio.Event().wait()
        return tuple(reversed(candidates))

    async def close(self) -> None: ...


@pytest.mark.anyio
async def test_an_order_that_the_reranker_did_not_finish_is_not_kept(tmp_path: Path) -> None:
    write(tmp_path, "a", "The quagga.", "A quagga and a quagga.")
    index, stuck, counts = LexicalIndex(tmp_path), Stuck(), Counts()
    inner = Retriever(Ones(), NoDense(), index, None, stuck, RerankSettings(timeout_seconds=0.01))
    cache = Cache(Bounds(9, 10**6), retrieval_bytes, keeps=lambda kept: kept.whole, observer=counts)
    retriever, query = CachedRetriever(inner, index, cache), Query("quagga", ("a",), 4)
    fused = texts(await retriever.retrieve(query, Trace()))
    stuck.stuck = False
    for _ in range(2):
        assert texts(await retriever.retrieve(query, Trace())) == fused[::-1]
    assert counts.outcomes == ["miss", "miss", "hit"]


@pytest.mark.anyio
async def test_scope_keeps_apart_what_is_otherwise_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a", "The quagga.")
    counts = Counts()
    retriever, query = remembering(tmp_path, counts), Query("quagga", ("a",), 4)
    for scope in (("acme", 1), ("globex", 1), ("acme", 2), ("acme", 1)):
        await retriever.retrieve(query, Trace(), scope=scope)
    for other in (
        Query("quagga", ("a",), 5),
        Query("quagga", ("a",), 4, (WeightedText("zebra"),)),
        Query("quagga", ("a",), 4, (WeightedText("zebra", 0.5),)),
    ):
        await retriever.retrieve(other, Trace(), scope=("acme", 1))
    assert counts.outcomes == ["miss", "miss", "miss", "hit", "miss", "miss", "miss"]

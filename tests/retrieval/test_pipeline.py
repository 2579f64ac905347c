"""The stages in order, over a real keyword index; the dense side is the smallest thing that searches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest

from retrieval.embed import QueryBatcher
from retrieval.embed.base import Embedder, Vectors
from retrieval.errors import DeadlineExceeded, EmbedderError, StoreUnavailable
from retrieval.lexical import LexicalIndex, LexicalWriter
from retrieval.pipeline import FusionSettings, Retriever
from retrieval.trace import Trace
from retrieval.types import (
    Candidate,
    FusionWeights,
    Hit,
    Passage,
    Query,
    Retrieval,
    WeightedText,
)

TEXTS = ("The quagga was a zebra.", "Green tea is steeped.", "A zebra crossing has stripes.")


def passages(store: str) -> list[Passage]:
    return [Passage(f"file-{store}", "ab" * 32, i, f"{store}.md", t) for i, t in enumerate(TEXTS)]


class Letters:
    """Embeds a text as the counts of its letters."""

    async def embed(self, text: str) -> Vectors:
        counts = np.array([text.lower().count(chr(97 + i)) for i in range(26)], dtype=np.float32)
        return counts / max(float(np.linalg.norm(counts)), 1e-9)


class Brute:
    """Compares with every row; `extra` are hits that no passage belongs to."""

    def __init__(self, rows: dict[str, list[Passage]], extra: Sequence[Hit] = ()) -> None:
        self.rows = rows
        self.extra = list(extra)
        self.asked: list[int] = []

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        self.asked.append(k)
        embedder = Letters()
        hits = [
            Hit(row.id, float(vector @ await embedder.embed(row.text)))
            for row in self.rows.get(store_id, ())
        ]
        return sorted([*hits, *self.extra], key=lambda hit: -hit.score)[:k]


@pytest.fixture
def lexical(tmp_path: Path) -> LexicalIndex:
    for store in ("a", "b"):
        with LexicalWriter(tmp_path, store) as writer:
            writer.replace_file(f"file-{store}", passages(store))
            writer.commit()
    return LexicalIndex(tmp_path)


def query(text: str, *stores: str, number: int = 4) -> Query:
    return Query(text, stores, number)


def found(retrieval: Retrieval) -> list[str]:
    return [candidate.passage.text for candidate in retrieval.candidates]


@pytest.mark.anyio
async def test_both_rankings_are_fused(lexical: LexicalIndex) -> None:
    retriever = Retriever(Letters(), Brute({"a": passages("a")}), lexical)
    trace = Trace()
    result = await retriever.retrieve(query("quagga zebra", "a"), trace)
    assert found(result)[0] == TEXTS[0]
    best = result.candidates[0]
    assert set(best.scores) == {"search", "lexical"}
    assert best.ranks == {"search": 1, "lexical": 1}
    by_cosine = sorted(result.candidates, key=lambda c: -c.scores["search"])
    assert [c.ranks["search"] for c in by_cosine] == [1, 2, 3]
    assert best.score == pytest.approx(1.0)
    assert [c.score for c in result.candidates] == sorted(
        (c.score for c in result.candidates), reverse=True
    )
    assert result.best_similarity == pytest.approx(
        max(c.scores["search"] for c in result.candidates)
    )
    assert [record.outcome for record in trace.records] == ["ok"] * 4
    assert set(trace.timings_ms()) == {"embed", "lexical", "search", "fuse"}


@pytest.mark.anyio
async def test_several_stores_are_one_ranking(lexical: LexicalIndex) -> None:
    dense = Brute({name: passages(name) for name in "ab"})
    result = await Retriever(Letters(), dense, lexical).retrieve(query("quagga", "a", "b"), Trace())
    assert {c.passage.file_id for c in result.candidates[:2]} == {"file-a", "file-b"}
    assert found(result)[:2] == [TEXTS[0]] * 2


@pytest.mark.anyio
async def test_a_vector_without_its_passage_is_not_visible(lexical: LexicalIndex) -> None:
    dense = Brute({"a": passages("a")}, extra=[Hit("file-gone/00/0", 0.99)])
    result = await Retriever(Letters(), dense, lexical).retrieve(query("zebra", "a"), Trace())
    assert "file-gone" not in {c.passage.file_id for c in result.candidates}
    assert result.candidates


@pytest.mark.anyio
async def test_a_store_that_holds_nothing(lexical: LexicalIndex) -> None:
    result = await Retriever(Letters(), Brute({}), lexical).retrieve(
        query("zebra", "none"), Trace()
    )
    assert (result.candidates, result.best_similarity) == ((), None)


class Counted(LexicalIndex):
    """Says how many passages were read."""

    read = 0

    def passages(self, store_id: str, ids: Sequence[str]) -> dict[str, Passage]:
        self.read += len(ids)
        return super().passages(store_id, ids)


@pytest.mark.anyio
async def test_no_more_passages_are_read_than_are_looked_at(tmp_path: Path) -> None:
    many = [Passage("file-a", "ab" * 32, i, "a.md", f"zebra number {i}") for i in range(40)]
    with LexicalWriter(tmp_path, "a") as writer:
        writer.replace_file("file-a", many)
        writer.commit()
    asked = query("zebra", "a", number=1)
    lexical = Counted(tmp_path)
    result = await Retriever(Letters(), Brute({"a": many}), lexical).retrieve(asked, Trace())
    assert lexical.read == len(result.candidates) == asked.enough == 6
    # Those that are not visible are made up for by the next ones.
    gone = Brute({"a": many}, extra=[Hit(f"file-gone/00/{i}", 0.99) for i in range(5)])
    settings = FusionSettings(lexical_weight=0)
    result = await Retriever(Letters(), gone, lexical, settings).retrieve(asked, Trace())
    assert len(result.candidates) == 6
    assert {c.passage.file_id for c in result.candidates} == {"file-a"}


class Threaded(LexicalIndex):
    """Notes on which threads it is asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.threads: list[int] = []

    def search(self, store_id: str, text: str, k: int) -> list[Hit]:
        self.threads.append(threading.get_ident())
        return super().search(store_id, text, k)

    def passages(self, store_id: str, ids: Sequence[str]) -> dict[str, Passage]:
        self.threads.append(threading.get_ident())
        return super().passages(store_id, ids)


@pytest.mark.anyio
@pytest.mark.usefixtures("lexical")
async def test_the_loop_itself_does_what_is_quicker_than_a_hop_to_a_thread(tmp_path: Path) -> None:
    index = Threaded(tmp_path)
    retriever = Retriever(Letters(), Brute({"a": passages("a")}), index)
    loop = {threading.get_ident()}
    await retriever.retrieve(query("zebra " * 99, "a"), Trace())
    assert loop.isdisjoint(index.threads)
    index.threads.clear()
    await retriever.retrieve(query("zebra", "a"), Trace())
    assert set(index.threads) == loop
    index.threads.clear()
    await retriever.retrieve(query("zebra", "a", "b"), Trace())
    assert loop.isdisjoint(index.threads)


@pytest.mark.anyio
async def test_as_many_candidates_as_are_asked_for(lexical: LexicalIndex) -> None:
    dense = Brute({"a": passages("a")})
    retriever = Retriever(Letters(), dense, lexical, FusionSettings(candidates=2))
    await retriever.retrieve(query("zebra", "a", number=1), Trace())
    await retriever.retrieve(query("zebra", "a", number=50), Trace())
    assert dense.asked == [2, 50]


@pytest.mark.anyio
async def test_a_query_s_own_weights(lexical: LexicalIndex) -> None:
    retriever = Retriever(Letters(), Brute({"a": passages("a")}), lexical)

    async def candidates(weights: FusionWeights) -> tuple[Candidate, ...]:
        asked = Query("crossing quagga", ("a",), 4, weights=weights)
        return (await retriever.retrieve(asked, Trace())).candidates

    dense = await candidates(FusionWeights(1.0, 0.0))
    assert [c.score for c in dense] == [c.scores["search"] for c in dense]
    assert [c.score for c in dense] == sorted((c.score for c in dense), reverse=True)
    keywords = await candidates(FusionWeights(0.0, 1.0))
    assert {c.passage.text for c in keywords} == {TEXTS[0], TEXTS[2]}
    assert {c.passage.text for c in dense} == set(TEXTS)


@pytest.mark.anyio
async def test_a_cosine_below_0_is_a_score_of_0(lexical: LexicalIndex) -> None:
    opposite = Hit(passages("a")[0].id, -0.5)
    settings = FusionSettings(lexical_weight=0)
    retriever = Retriever(Letters(), Brute({}, extra=[opposite]), lexical, settings)
    result = await retriever.retrieve(query("zebra", "a"), Trace())
    assert [c.score for c in result.candidates] == [0.0]


class Broken(Brute):
    def __init__(self, error: Exception) -> None:
        super().__init__({})
        self.error = error

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        raise self.error


class Deaf(Letters):
    async def embed(self, text: str) -> Vectors:
        raise EmbedderError(f"cannot read {text}")


@pytest.mark.anyio
async def test_an_error_is_raised_as_it_is(lexical: LexicalIndex) -> None:
    trace = Trace()
    retriever = Retriever(Letters(), Broken(StoreUnavailable("gone")), lexical)
    with pytest.raises(StoreUnavailable, match="gone"):
        await retriever.retrieve(query("zebra", "a"), trace)
    outcomes = {record.stage: record.outcome for record in trace.records}
    assert (outcomes["embed"], outcomes["search"]) == ("ok", "error")
    assert "fuse" not in outcomes
    with pytest.raises(EmbedderError, match="cannot read zebra"):
        await Retriever(Deaf(), Brute({}), lexical).retrieve(query("zebra", "a"), Trace())


class Silent(Brute):
    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.anyio
async def test_a_deadline(lexical: LexicalIndex) -> None:
    trace, until = Trace(), asyncio.get_running_loop().time() + 0.05
    with pytest.raises(DeadlineExceeded, match="retrieval_timeout_seconds"):
        await Retriever(Letters(), Silent({}), lexical).retrieve(
            query("zebra", "a"), trace, until=until
        )
    outcomes = {record.stage: record.outcome for record in trace.records}
    assert outcomes["search"] == "timeout"


@pytest.mark.anyio
async def test_a_caller_that_leaves_cancels_the_search(lexical: LexicalIndex) -> None:
    trace, until = Trace(), asyncio.get_running_loop().time() + 600
    retriever = Retriever(Letters(), Silent({}), lexical)
    task = asyncio.ensure_future(retriever.retrieve(query("zebra", "a"), trace, until=until))
    with anyio.fail_after(10):
        while not any(record.stage == "embed" for record in trace.records):  # noqa: ASYNC110
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {r.stage: r.outcome for r in trace.records}["search"] == "cancelled"


@pytest.mark.anyio
async def test_texts_beside_the_question_are_fused_with_it(lexical: LexicalIndex) -> None:
    retriever = Retriever(Letters(), Brute({"a": passages("a")}), lexical)
    alone = await retriever.retrieve(query("steeped", "a"), Trace())
    assert found(alone)[0] == TEXTS[1]

    beside = (WeightedText("zebra crossing stripes", 3.0, 3.0),)
    asked = Query("steeped", ("a",), 4, also=beside)
    trace = Trace()
    both = await retriever.retrieve(asked, trace)
    assert found(both)[0] == TEXTS[2]
    assert set(found(both)) == set(TEXTS)
    # First for one text of the two is not first everywhere.
    assert both.candidates[0].score < 1
    assert [record.stage for record in trace.records].count("embed") == 1


class Counting(Embedder):
    """Notes how many texts came in each call."""

    name, dimension, max_tokens = "letters", 26, 256

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(len(texts))
        return np.eye(len(texts), 26, dtype=np.float32)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return self.embed_queries(texts)

    def count_tokens(self, text: str) -> int:
        return len(text)


@pytest.mark.anyio
async def test_the_texts_of_a_query_are_one_batch(lexical: LexicalIndex) -> None:
    embedder = Counting()
    batcher = QueryBatcher(embedder)
    asked = Query("zebra", ("a",), 4, also=(WeightedText("quagga"), WeightedText("tea")))
    await Retriever(batcher, Brute({}), lexical).retrieve(asked, Trace())
    await batcher.close()
    assert embedder.batches == [3]


@pytest.mark.anyio
async def test_a_stage_s_score_is_the_best_of_the_texts(lexical: LexicalIndex) -> None:
    retriever = Retriever(Letters(), Brute({"a": passages("a")}), lexical)
    alone = await retriever.retrieve(query("quagga zebra", "a"), Trace())
    asked = Query("quagga zebra", ("a",), 4, also=(WeightedText("tea"),))
    both = await retriever.retrieve(asked, Trace())
    best = {c.passage.text: c for c in both.candidates}[TEXTS[0]]
    assert best.scores["lexical"] == pytest.approx(alone.candidates[0].scores["lexical"])
    # The other text finds it too, in another place.
    assert best.ranks == {"search": 1, "lexical": 1}

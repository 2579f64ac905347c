"""Texts of any length to one vector each, over an embedder that is simple enough to know the answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from retrieval.embed import WholeTexts
from retrieval.embed.base import Vectors
from retrieval.embed.windows import BATCH
from retrieval.errors import EmbedderError, TextTooLong


class Words:
    """Reads ten words; its vector is the direction of how many `a` and `b` it read. Waits where told to."""

    name, dimension, max_tokens = "words", 2, 10

    def __init__(self) -> None:
        self.read: list[list[str]] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def embed_queries(self, texts: Sequence[str]) -> Vectors:  # noqa: ARG002
        raise AssertionError

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        self.read.append(list(texts))
        self.entered.set()
        assert self.go_on.wait(30)
        if "broken" in texts:
            raise EmbedderError("cannot read it")
        found = np.array([[text.split().count(c) for c in "ab"] for text in texts], np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        vectors: Vectors = found / np.maximum(lengths, 1e-9)
        return vectors

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@asynccontextmanager
async def opened(embedder: Words) -> AsyncIterator[WholeTexts]:
    texts = WholeTexts(embedder)
    try:
        yield texts
    finally:
        embedder.go_on.set()
        await texts.close()


@pytest.mark.anyio
async def test_windows_count_by_their_length() -> None:
    words = Words()
    async with opened(words) as texts:
        # Even windows, cut at the sentence: one of eight `a`, one of four `b`.
        long = "a a a a a a a a. " + "b " * 4
        done = await texts.embed(["b", long, "a"], max_tokens=100)
    assert done.vectors.shape == (3, 2)
    np.testing.assert_allclose(done.vectors[[0, 2]], [[0, 1], [1, 0]])
    assert done.vectors[1] @ [1, 0] > done.vectors[1] @ [0, 1] > 0
    assert np.linalg.norm(done.vectors[1]) == pytest.approx(1)
    assert done.tokens == 1 + 12 + 1
    assert all(len(text.split()) <= 10 for batch in words.read for text in batch)
    assert sum(len(text.split()) for batch in words.read for text in batch) == 14


@pytest.mark.anyio
async def test_many_texts_keep_their_places() -> None:
    words = Words()
    async with opened(words) as texts:
        given = ["a" if i % 3 else "b b b b" for i in range(3 * BATCH + 1)]
        done = await texts.embed(given, max_tokens=10_000)
    expected = [[1, 0] if i % 3 else [0, 1] for i in range(len(given))]
    np.testing.assert_allclose(done.vectors, expected)
    assert max(map(len, words.read)) == BATCH


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["", " \n ", " " * 500])
async def test_a_text_without_words_has_a_vector(text: str) -> None:
    words = Words()
    async with opened(words) as texts:
        done = await texts.embed([text], max_tokens=100)
    assert (done.vectors.shape, done.tokens) == ((1, 2), 0)
    assert [len(batch) for batch in words.read] == [1]


@pytest.mark.anyio
async def test_too_much_is_refused_before_it_is_embedded() -> None:
    words = Words()
    async with opened(words) as texts:
        assert (await texts.embed(["a " * 50], max_tokens=50)).tokens == 50
        words.read.clear()
        for given in (["a " * 51], ["a"] * 51, ["x" * 10_000]):
            with pytest.raises(TextTooLong, match="50"):
                await texts.embed(given, max_tokens=50)
    assert words.read == []


@pytest.mark.anyio
async def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    words = Words()
    words.go_on.clear()
    async with opened(words) as texts:
        large = asyncio.ensure_future(texts.embed(["a"] * 20 * BATCH, max_tokens=10_000))
        await asyncio.to_thread(words.entered.wait, 30)
        small = asyncio.ensure_future(texts.embed(["b"], max_tokens=10))
        await asyncio.sleep(0)  # it is in the thread's queue now
        words.go_on.set()
        await small
        assert not large.done()
        await large
    assert ["b"] in words.read[:5]


@pytest.mark.anyio
async def test_who_leaves_frees_the_thread() -> None:
    words = Words()
    words.go_on.clear()
    async with opened(words) as texts:
        large = asyncio.ensure_future(texts.embed(["a"] * 20 * BATCH, max_tokens=10_000))
        await asyncio.to_thread(words.entered.wait, 30)
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        words.go_on.set()
        await texts.embed(["b"], max_tokens=10)
    assert len(words.read) == 2


@pytest.mark.anyio
async def test_the_embedder_s_error_is_raised() -> None:
    async with opened(Words()) as texts:
        with pytest.raises(EmbedderError, match="cannot read"):
            await texts.embed(["broken"], max_tokens=10)
        assert (await texts.embed(["a"], max_tokens=10)).tokens == 1

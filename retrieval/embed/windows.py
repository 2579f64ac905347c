"""Texts of any length to one vector each: a text longer than the embedder reads is cut, and its windows pooled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrieval.embed.base import Embedder, Vectors
from retrieval.embed.tokenize import unit
from retrieval.errors import TextTooLong
from retrieval.ingest.chunk import MAX_CHARS_PER_TOKEN, chunk
from retrieval.ingest.document import Document, Section

A = TypeVar("A")
T = TypeVar("T")

#: Texts or windows a turn on the thread: then it is the next request's.
BATCH = 32


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit vectors of shape (texts, dimension), and how many tokens of the embedder's they were made from."""

    vectors: Vectors
    tokens: int


@dataclass(frozen=True, slots=True)
class _Window:
    """A piece of text number `owner`, no longer than the embedder reads."""

    owner: int
    text: str
    tokens: int


class WholeTexts:
    """Embeds texts as passages on one thread of its own, so that no question waits behind them.

    Requests take turns batch by batch: a large one does not keep a small one waiting to its end.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed-texts")

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    async def embed(self, texts: Sequence[str], *, max_tokens: int) -> Embedded:
        """One vector a text; a longer text's is the mean of its windows', weighted by their tokens.

        Raises TextTooLong where the texts together have more than `max_tokens`, and EmbedderError.
        """
        if sum(map(len, texts)) > max_tokens * MAX_CHARS_PER_TOKEN:
            raise _too_long(max_tokens)
        numbered = list(enumerate(texts))
        windows: list[_Window] = []
        for start in range(0, len(texts), BATCH):
            batch = numbered[start : start + BATCH]
            windows += await self._turn(self._cut, batch)
            if sum(window.tokens for window in windows) > max_tokens:
                raise _too_long(max_tokens)
        # Neighbours in length share a batch, so that little of it is padding.
        windows.sort(key=lambda window: window.tokens)
        sums = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(windows), BATCH):
            some = windows[start : start + BATCH]
            read = [window.text for window in some]
            vectors = await self._turn(self._embedder.embed_passages, read)
            weights = np.array([max(window.tokens, 1) for window in some], dtype=np.float32)
            np.add.at(sums, [window.owner for window in some], vectors * weights[:, None])
        return Embedded(unit(sums), sum(window.tokens for window in windows))

    async def _turn(self, work: Callable[[A], T], batch: A) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, batch)

    def _cut(self, texts: Sequence[tuple[int, str]]) -> list[_Window]:
        return [
            _Window(number, window, self._embedder.count_tokens(window))
            for number, text in texts
            for window in self._windows(text)
        ]

    def _windows(self, text: str) -> list[str]:
        limit = self._embedder.max_tokens
        if len(text) <= limit * MAX_CHARS_PER_TOKEN and self._embedder.count_tokens(text) <= limit:
            return [text]
        whole = Document("", (Section(text),))
        cut = chunk(whole, count_tokens=self._embedder.count_tokens, max_tokens=limit)
        return [piece.text for piece in cut] or [""]

    async def close(self) -> None:
        """Let the batch in hand finish, drop the others, and end the thread."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)


def _too_long(max_tokens: int) -> TextTooLong:
    return TextTooLong(
        f"the texts together have more than {max_tokens} tokens; send fewer in one request"
    )

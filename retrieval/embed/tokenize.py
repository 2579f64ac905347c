"""Text to token ids and token vectors to one vector: what the fast backends share. Owns `tokenizers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval.embed.base import Vectors
from retrieval.embed.folder import ModelFolder, Pooling
from retrieval.errors import EmbedderError

Tokens = npt.NDArray[np.int64]

#: (ids, mask), each (texts, tokens) -> token vectors (texts, tokens, dimension).
Forward = Callable[[Tokens, Tokens], Vectors]

#: Texts a call of the graph: beyond it CPUs gain nothing and a waiting query waits longer.
MAX_BATCH = 32


class Tokenizer:
    """A `tokenizer.json`, truncating at the model's limit and padding to the longest of the batch."""

    def __init__(self, file_or_json: Path | str, max_length_tokens: int) -> None:
        """Takes the file, or its JSON as text. Raises EmbedderError when it is not a tokenizer."""
        import tokenizers

        def load() -> tokenizers.Tokenizer:
            if isinstance(file_or_json, Path):
                return tokenizers.Tokenizer.from_file(str(file_or_json))
            return tokenizers.Tokenizer.from_str(file_or_json)

        try:
            self._whole, self._cut = load(), load()
        except Exception as error:  # the library raises bare Exception for every bad file
            raise EmbedderError(f"tokenizer {file_or_json} cannot be read ({error})") from error
        # The file's own truncation and padding are whatever its author last used.
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut.no_padding()
        self._cut.enable_truncation(max_length_tokens)
        self.special_tokens: int = self._cut.num_special_tokens_to_add(False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, special tokens included, none longer than the model's limit."""
        return [encoding.ids for encoding in self._cut.encode_batch(list(texts))]

    def count(self, text: str) -> int:
        """Tokens of the whole text, special tokens not counted."""
        return len(self._whole.encode(text, add_special_tokens=False).ids)


class FolderEmbedder:
    """An `Embedder` over a graph that gives token vectors; the graph is OpenVINO's or ONNX Runtime's."""

    def __init__(self, model: ModelFolder, queries: Forward, passages: Forward) -> None:
        self._model = model
        self._queries = queries
        self._passages = passages
        self._tokenizer = Tokenizer(model.path / "tokenizer.json", model.max_length_tokens)
        prefix_tokens = self._tokenizer.count(model.prefixes.passage)
        self._max_tokens = model.max_length_tokens - self._tokenizer.special_tokens - prefix_tokens

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def dimension(self) -> int:
        return self._model.dimension

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embed(texts, self._model.prefixes.query, self._queries)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return self._embed(texts, self._model.prefixes.passage, self._passages)

    def count_tokens(self, text: str) -> int:
        return self._tokenizer.count(text)

    def _embed(self, texts: Sequence[str], prefix: str, forward: Forward) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        encoded = self._tokenizer.encode([prefix + text for text in texts])
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), MAX_BATCH):
            rows = order[start : start + MAX_BATCH]
            ids, mask = pad([encoded[row] for row in rows])
            vectors[rows] = pool(forward(ids, mask), mask, self._model.pooling)
        return vectors


def pad(encoded: Sequence[Sequence[int]]) -> tuple[Tokens, Tokens]:
    """Ids and mask of shape (texts, longest). The id under a zero mask does not matter, so it is 0.

    A text of no tokens is read as one token 0: without any, attention and mean are 0/0.
    """
    width = max(1, *map(len, encoded))
    ids = np.zeros((len(encoded), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    mask[:, 0] = 1
    for row, text_ids in enumerate(encoded):
        ids[row, : len(text_ids)] = text_ids
        mask[row, : len(text_ids)] = 1
    return ids, mask


def pool(hidden: Vectors, mask: Tokens, pooling: Pooling) -> Vectors:
    """Token vectors (texts, tokens, dimension) to unit vectors (texts, dimension), as the model was trained."""
    if pooling == "cls":
        vectors = hidden[:, 0]
    else:
        weights = mask.astype(np.float32)
        vectors = np.matmul(weights[:, None, :], hidden)[:, 0] / weights.sum(axis=1, keepdims=True)
    return unit(vectors)


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a row of zeros stays zeros. float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled

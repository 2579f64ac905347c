"""Embedding by sentence-transformers: any model it knows, by name or path, on CPU or GPU. Owns that library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from retrieval.embed.base import Vectors
from retrieval.embed.prefixes import choose_prefixes
from retrieval.embed.tokenize import MAX_BATCH, Tokenizer, unit
from retrieval.errors import EmbedderError
from retrieval.torch_models import LOAD_ERRORS, first_line, limit_threads, load_local_first

_Result = TypeVar("_Result")

#: Texts a step on the CPU: small, so that a query waits for one step of an ingest and not for all of it.
_CPU_BATCH = 8


class TorchEmbedder:
    """An `Embedder` over `SentenceTransformer`, on one thread of its own.

    That thread carries the limit on torch's CPU threads: `torch.set_num_threads` there, and the process's
    own number set back at once, leaves every other thread (the engine's) as it was.
    """

    def __init__(
        self, model: str, *, name: str, device: str, query_prefix: str | None, threads: int
    ) -> None:
        """Load `model` (a folder, or a hub name: the local cache first). Raises EmbedderError."""
        self._name = name
        self._batch = _CPU_BATCH if device == "cpu" else MAX_BATCH
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embed-torch")
        self._model = self._call(lambda: _load(model, device))
        limit_threads(self._worker, threads)  # not before: loading sets torch's number again
        self._prefixes = choose_prefixes(name, self._model.prompts, query_prefix)
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EmbedderError(
                f"embedder {name!r} has no tokenizer.json; use a model that has one"
            )
        limit = int(self._model.max_seq_length or self._model.tokenizer.model_max_length)
        self._tokenizer = Tokenizer(backend.to_str(), limit)
        prefix_tokens = self._tokenizer.count(self._prefixes.passage)
        self._dimension: int = self._call(lambda: self._encode([""], "")).shape[1]
        self._max_tokens = limit - self._tokenizer.special_tokens - prefix_tokens

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embed(texts, self._prefixes.query)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return self._embed(texts, self._prefixes.passage)

    def count_tokens(self, text: str) -> int:
        return self._tokenizer.count(text)

    def _embed(self, texts: Sequence[str], prompt: str) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            batch = [texts[row] for row in rows]
            vectors[rows] = self._call(partial(self._encode, batch, prompt))
        return vectors

    def _encode(self, texts: list[str], prompt: str) -> Vectors:
        # An explicit prompt, even an empty one, keeps a model's `default_prompt_name` out of it.
        vectors = self._model.encode(
            texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False
        )
        return unit(np.asarray(vectors, dtype=np.float32))

    def _call(self, work: Callable[[], _Result]) -> _Result:
        """Run `work` on the embedder's own thread."""
        try:
            return self._worker.submit(work).result()
        except (RuntimeError, ValueError, IndexError) as error:
            raise EmbedderError(f"embedder {self._name!r} failed: {error}") from error


def _load(model: str, device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return load_local_first(SentenceTransformer, model, device)
    except LOAD_ERRORS as error:
        raise EmbedderError(
            f"embedder {model!r} cannot be loaded: {first_line(error)}. Looked for a folder of that name, in the hub's "
            "local cache and on the hub; check the name and the connection, or set the embedder to a local "
            "folder or to all-MiniLM-L6-v2, which needs no hub"
        ) from error

"""Reranking by any cross-encoder of sentence-transformers, by name or path. Owns that part of the library."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from retrieval.errors import RerankerError
from retrieval.torch_models import LOAD_ERRORS, first_line, limit_threads, load_local_first
from retrieval.types import Candidate

#: Pairs a step: between steps the thread looks whether anybody still waits.
_BATCH = 4


class CrossEncoderReranker:
    """A `Reranker` on one thread of its own, on the CPU: a GPU belongs to the engine."""

    def __init__(self, model: str, *, threads: int) -> None:
        """Load `model` (a folder, or a hub name: the local cache first). Blocks. Raises RerankerError."""
        self._name = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerank")
        self._model = self._thread.submit(_load, model).result()
        limit_threads(self._thread, threads)

    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        stopped = threading.Event()
        texts = [candidate.passage.text for candidate in candidates]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._score, question, texts, stopped
            )
        finally:
            # A thread cannot be cancelled; without this, late answers would pile up before the next question.
            stopped.set()
        scored = [
            replace(candidate, score=score, scores={**candidate.scores, "rerank": score})
            for candidate, score in zip(candidates, scores, strict=True)
        ]
        return sorted(scored, key=lambda candidate: -candidate.score)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _score(self, question: str, texts: Sequence[str], stopped: threading.Event) -> list[float]:
        from torch.nn import Sigmoid

        scores: list[float] = []
        try:
            for start in range(0, len(texts), _BATCH):
                if stopped.is_set():
                    raise RerankerError("nobody waits for this any more")
                pairs = [(question, text) for text in texts[start : start + _BATCH]]
                # Some models say identity here, and their scores would leave 0..1.
                step = self._model.predict(
                    pairs, activation_fn=Sigmoid(), show_progress_bar=False, batch_size=_BATCH
                )
                scores += [float(score) for score in step]
        except (RuntimeError, ValueError, IndexError) as error:
            raise RerankerError(f"reranker {self._name!r} failed: {error}") from error
        return scores


def _load(model: str) -> Any:
    from sentence_transformers import CrossEncoder

    try:
        loaded = load_local_first(CrossEncoder, model, "cpu")
        labels = loaded.num_labels
    except LOAD_ERRORS as error:
        raise RerankerError(
            f"reranker {model!r} cannot be loaded: {first_line(error)}. Looked for a folder of that name, in the hub's "
            "local cache and on the hub; check the name and the connection, or leave the setting out"
        ) from error
    if labels != 1:
        raise RerankerError(
            f"reranker {model!r} has {labels} labels; use a cross-encoder that gives one score for a pair"
        )
    return loaded

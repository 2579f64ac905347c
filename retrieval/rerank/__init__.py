"""Stage `rerank`: candidates put in a new order by a model that reads question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from retrieval.types import Candidate


class Reranker(Protocol):
    """Orders candidates; `scores["rerank"]` and `score` of what it returns are 0..1, best first."""

    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All of `candidates`, in a new order. A caller may stop waiting at any time; the work stops soon after.

        Raises RerankerError.
        """

    async def close(self) -> None:
        """End its thread."""


def open_reranker(model: str, threads: int) -> Reranker:
    """The cross-encoder of this name or folder. Blocks for seconds. Raises RerankerError."""
    from retrieval.rerank.cross_encoder import CrossEncoderReranker  # brings torch

    return CrossEncoderReranker(model, threads=threads)

"""What retrieval asks of an embedder. Query prefix, pooling and limits belong to the embedder, not to its callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Text to unit vectors. Methods block and are safe to call from several threads."""

    @property
    def name(self) -> str:
        """The model's name as listed in `/v1/models` and stored beside the vectors."""

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """The longest passage the model reads, special tokens not counted."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (len(texts), dimension), float32, unit length. Raises EmbedderError."""

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """As `embed_queries`, without the query prefix. Raises EmbedderError."""

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` in the embedder's own tokenizer, special tokens not counted."""

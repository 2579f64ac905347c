"""A file's bytes as the passages that an index is to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval.embed.base import Embedder
from retrieval.errors import UnreadableFile
from retrieval.ingest.chunk import chunk
from retrieval.ingest.index import INDEX_FORMAT
from retrieval.ingest.load import load
from retrieval.ingest.steps import Steps
from retrieval.types import Passage
from server.ingestion.lock import IngestError


class Cutter:
    """Cuts files for one embedder; `chunking` is what the catalog keeps beside each file, `steps` times it.

    Raises IngestError for an overlap that the chunks have no room for.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        chunk_tokens: int,
        overlap_tokens: int,
        max_file_bytes: int,
        steps: Steps | None = None,
    ) -> None:
        most = min(chunk_tokens, embedder.max_tokens) // 2
        if not 0 <= overlap_tokens <= most:
            raise IngestError(
                f"chunk_overlap_tokens is {overlap_tokens}; it must be 0 to {most}, half of the "
                f"chunk (chunk_tokens is {chunk_tokens}, {embedder.name} reads {embedder.max_tokens})"
            )
        self._steps = steps or Steps()
        self._embedder = embedder
        self._max_file_bytes = max_file_bytes
        self._max_tokens = min(chunk_tokens, embedder.max_tokens)
        self._overlap_tokens = overlap_tokens
        self.chunking: Mapping[str, Any] = {
            "max_tokens": self._max_tokens,
            "overlap_tokens": overlap_tokens,
            "format": INDEX_FORMAT,
        }

    def cut(self, file_id: str, digest: str, name: str, data: bytes) -> tuple[Passage, ...]:
        """The file's passages, at least one. Blocks. Raises UnreadableFile."""
        with self._steps.step("load"):
            document = load(name, data, max_bytes=self._max_file_bytes)
        with self._steps.step("chunk"):
            chunks = chunk(
                document,
                count_tokens=self._embedder.count_tokens,
                max_tokens=self._max_tokens,
                overlap_tokens=self._overlap_tokens,
            )
        if not chunks:
            raise UnreadableFile(name, "it holds no text")
        return tuple(
            Passage(
                file_id=file_id,
                content_hash=digest,
                chunk=number,
                filename=name,
                text=piece.text,
                title=document.title,
                headings=piece.headings,
                page=piece.page,
            )
            for number, piece in enumerate(chunks)
        )

"""A small real embedder, and an ingest in a process of its own (which tests can kill)."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np

from retrieval.embed.base import Vectors
from server.catalog import sqlite_url
from server.ingestion import IngestEvent, IngestJob, ReindexJob, ingest_paths, reindex_stores


class HashEmbedder:
    """Random projection of words by their hash: texts that share words are near each other."""

    def __init__(self, name: str = "hash", dimension: int = 64) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = 256
        self.embedded: list[str] = []

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        self.embedded.extend(texts)
        vectors = np.stack([self._text(text) for text in texts])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed_passages(texts)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def _text(self, text: str) -> Vectors:
        words = re.findall(r"\w+", text.lower()) or [""]
        return np.asarray(sum(self._word(word) for word in words), np.float32)

    def _word(self, word: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        vector = np.random.default_rng(seed).standard_normal(self.dimension)
        return np.asarray(vector, np.float32)


def job(data_dir: Path, *paths: Path, chroma_url: str | None = None) -> IngestJob:
    url = sqlite_url(data_dir / "catalog.db")
    return IngestJob(paths, "docs", data_dir, url, chroma_url, prune=True, chunk_tokens=40)


def say(event: IngestEvent) -> None:
    print(event.kind, event.done, event.name, flush=True)


def say_and_wait(event: IngestEvent) -> None:
    """Stop at the first vectors, so that a kill is sure to come in the middle."""
    say(event)
    if event.kind == "embedded":
        threading.Event().wait()


async def main(data_dir: str, path: str, chroma_url: str) -> None:
    """Ingest `path`, or rebuild the store when it is the word `reindex`."""
    if path == "reindex":
        url = sqlite_url(Path(data_dir) / "catalog.db")
        again = ReindexJob(("docs",), Path(data_dir), url, chroma_url, chunk_tokens=40)
        await reindex_stores(again, HashEmbedder("other", 32), say_and_wait)
        return
    await ingest_paths(
        job(Path(data_dir), Path(path), chroma_url=chroma_url or None), HashEmbedder(), say
    )


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])

"""A store of made-up passages, written straight into both indexes: real embeddings with noise around them.

Embedding 100,000 passages would take an hour of CPU and say nothing more about retrieval.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.corpus import passage_text
from retrieval.embed.base import Embedder, Vectors
from retrieval.lexical import LexicalWriter
from retrieval.search import VectorRow, VectorStore, connect
from retrieval.types import Passage
from server.catalog import LOCAL_TENANT, Catalog
from server.embedding import open_embedder
from server.settings import load_settings

#: Topics of a store at most: each is one passage that is really embedded; the others lie around it.
TOPICS = 256
#: Length of the noise beside a unit vector: cosines of about .86 to the topic, .74 within it.
SPREAD = 0.6
ROWS = 1000


@dataclass(frozen=True, slots=True)
class Topics:
    """The embeddings that made-up passages are made from, one row a topic."""

    embedder: str
    vectors: Vectors

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])


def embed_topics(count: int = TOPICS) -> Topics:
    """Embed one passage of each topic with the configured embedder. Blocks for seconds."""
    embedder: Embedder = open_embedder(load_settings(), lambda _: None)
    texts = [passage_text(topic, topic) for topic in range(count)]
    return Topics(embedder.name, embedder.embed_passages(texts))


async def write_store(data_dir: Path, name: str, passages: int, topics: Topics) -> None:
    """Write the store `name` of `passages` passages into a data directory that no server uses."""
    settings = load_settings({"data_dir": data_dir})
    settings.make_data_dir()
    async with await Catalog.open(settings.resolved_catalog_url) as catalog:
        store = await catalog.create_store(LOCAL_TENANT, name)
        await catalog.bind_embedder(store.id, topics.embedder, topics.dimension)
    async with connect(data_dir) as connection:
        with LexicalWriter(data_dir / "lexical", store.id) as lexical:
            rng = np.random.default_rng(passages)
            for first in range(0, passages, ROWS):
                numbers = range(first, min(first + ROWS, passages))
                await _write(connection.store, lexical, store.id, numbers, topics.vectors, rng)
            await asyncio.to_thread(lexical.commit)


async def _write(
    vectors: VectorStore,
    lexical: LexicalWriter,
    store_id: str,
    numbers: range,
    topics: Vectors,
    rng: np.random.Generator,
) -> None:
    """One made-up file of the passages `numbers`."""
    digest = hashlib.sha256(str(numbers.start).encode()).hexdigest()
    file_id, name = f"file-{digest[:32]}", f"part-{numbers.start}.md"
    about = [number % len(topics) for number in numbers]
    passages = [
        Passage(file_id, digest, row, name, passage_text(number, topic))
        for row, (number, topic) in enumerate(zip(numbers, about, strict=True))
    ]
    noise = _unit(rng.standard_normal((len(about), topics.shape[1]))) * SPREAD
    points = _unit(topics[about] + noise).astype(np.float32)
    rows = [
        VectorRow(passage.id, file_id, digest, point)
        for passage, point in zip(passages, points, strict=True)
    ]
    await vectors.upsert(store_id, rows)
    lexical.replace_file(file_id, passages)


def _unit(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    unit: np.ndarray[tuple[int, int], np.dtype[np.float64]] = rows / np.linalg.norm(
        rows, axis=1, keepdims=True
    )
    return unit

"""Ingestion beside its own embedder: what reading, cutting and both indexes cost on top."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.corpus import write_corpus
from bench.figures import Figure, ratio
from bench.lab import Lab, alternate
from bench.servers import ingest, ingested
from bench.stats import Target


async def run(lab: Lab) -> list[Figure]:
    folder = lab.folder / "rate"
    write_corpus(folder, 64 if lab.options.quick else 800, seed=99)

    async def one(name: str, number: int) -> float:
        if name == "embedder alone":
            return await _embedded(folder)
        data = lab.folder / f"rate-{number}"  # a new directory: nothing is skipped
        report = await asyncio.to_thread(lambda: ingested(ingest(folder, data)))
        return report["chunks"] / report["seconds"]

    rounds = await alternate(("embedder alone", "groundwire ingest"), lab.rounds, one, warm=False)
    sides = [(name, rounds[name]) for name in ("groundwire ingest", "embedder alone")]
    return [ratio("passages", "passages/s", sides[0], sides[1], Target(low=0.85))]


async def _embedded(folder: Path) -> float:
    """Passages a second of the embedder alone, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.scenarios.ingest_rate", str(folder),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the embedder alone failed")
    rate: float = json.loads(out)
    return rate


def main(folder: Path) -> None:
    """Embed the passages that an ingest of `folder` would; print passages a second."""
    import time

    from retrieval.ingest.index import EMBED_BATCH
    from server.embedding import open_embedder
    from server.settings import load_settings

    settings = load_settings()
    embedder = open_embedder(settings, lambda _: None)
    limit = min(settings.chunk_tokens, embedder.max_tokens)
    texts = _texts(folder, embedder.count_tokens, limit, settings.chunk_overlap_tokens)
    start = time.perf_counter()
    for first in range(0, len(texts), EMBED_BATCH):
        embedder.embed_passages(texts[first : first + EMBED_BATCH])
    print(json.dumps(len(texts) / (time.perf_counter() - start)))


def _texts(
    folder: Path, count_tokens: Callable[[str], int], limit: int, overlap: int
) -> Sequence[str]:
    from retrieval.ingest.chunk import chunk
    from retrieval.ingest.load import load

    documents = [
        load(path.name, path.read_bytes(), max_bytes=2**30) for path in sorted(folder.iterdir())
    ]
    return [
        piece.text
        for document in documents
        for piece in chunk(
            document, count_tokens=count_tokens, max_tokens=limit, overlap_tokens=overlap
        )
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A Chroma server that is not ours, and collections in it that something else filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings as ChromaSettings

from retrieval.embed import Embedder, Vectors
from retrieval.search import ChromaChild
from server.embedding import open_embedder, open_other
from server.ingestion import AdoptJob, AdoptReport, adopt_collection
from tests.server.api.bench import Bench

QUAGGA = "The quagga grazed at dawn in the valley of Karoo."
TEXTS = {
    QUAGGA: "/zoo/quagga.pdf",
    "The last quagga died in the zoo of Amsterdam in 1883.": "/zoo/quagga.pdf",
    "Gravel is sold by the ton at the harbour of Odense.": "/trade/gravel.md",
    "The ferry to Zanzibar leaves on Tuesdays after the rain.": "/trade/ferry.md",
}


@dataclass
class Elsewhere:
    """The other server's clients and the bench whose stores are adopted from it."""

    url: str
    bench: Bench
    client: Any = field(init=False)
    embedder: Embedder = field(init=False)

    def __post_init__(self) -> None:
        host, _, port = self.url.rpartition("://")[2].partition(":")
        settings = ChromaSettings(anonymized_telemetry=False)
        self.client = chromadb.HttpClient(host=host, port=int(port), settings=settings)
        self.embedder = open_embedder(self.bench.settings, lambda _: None)

    def fill(
        self,
        name: str,
        texts: Mapping[str, str] = TEXTS,
        *,
        space: str = "cosine",
        made: Callable[[Sequence[str]], Vectors] | None = None,
        page: int = 0,
    ) -> Any:
        """A collection with a row a text, as an application with the plain client makes it."""
        collection = self.client.get_or_create_collection(
            name, embedding_function=None, configuration={"hnsw": {"space": space}}
        )
        vectors = (made or self.embedder.embed_passages)(list(texts))
        collection.upsert(
            ids=[str(hash(text)) for text in texts],
            documents=list(texts),
            embeddings=vectors,
            metadatas=[{"source": source, "page": page} for source in texts.values()],
        )
        return collection

    def adopt(self, collection: str, **given: str) -> AdoptReport:
        """As the command does it, in the bench's loop."""
        settings = self.bench.settings
        wanted = {"chroma_url": self.url, "embedder": settings.embedder, **given}
        job = AdoptJob(
            collection,
            {"collection": collection} | wanted,
            settings.data_dir,
            settings.resolved_catalog_url,
            grace_seconds=0,
        )
        return self.bench.run(adopt_collection(job, self._open))

    def _open(self, model: str, query_prefix: str | None) -> Embedder:
        if (model, query_prefix) == (self.bench.settings.embedder, None):
            return self.embedder
        return open_other(self.bench.settings, model, query_prefix, lambda _: None)

    def complaint(self, name: str) -> str | None:
        """What the checkup says of a store."""

        async def check() -> str | None:
            services = self.bench.services
            return await services.handover.current.indexes.check(
                await services.handover.current.catalog.find_store("local", name)
            )

        return self.bench.run(check())


def search(running: Any, store: str, query: str, **options: Any) -> Any:
    return running.client.post(
        f"/v1/vector_stores/{store}/search", json={"query": query, **options}
    )


def texts(response: Any) -> list[str]:
    return [part["text"] for one in response.json()["data"] for part in one["content"]]


@contextmanager
def open_elsewhere(bench: Bench, folder: Path) -> Iterator[Elsewhere]:
    """A Chroma server of its own."""
    child = ChromaChild(folder)
    bench.run(child.__aenter__())
    try:
        yield Elsewhere(child.endpoint.url, bench)
    finally:
        bench.run(child.__aexit__(None, None, None))

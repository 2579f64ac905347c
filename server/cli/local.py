"""What the commands that work on the data directory share."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.embed.base import Embedder
    from retrieval.lexical import LexicalIndex
    from retrieval.pipeline import Retriever
    from retrieval.rerank import Reranker
    from server.catalog import Store
    from server.settings import Settings


#: Settings that commands on the data directory take as flags.
LOCAL_SETTINGS = (
    "data_dir",
    "models_dir",
    "catalog_url",
    "chroma_url",
    "embedder",
    "embedder_backend",
)
#: The same, of commands that read an index and do not change it.
READING_SETTINGS = (*LOCAL_SETTINGS, "published_dir")


def clean(text: str) -> str:
    """Text of unknown origin for a terminal: control characters must not reach it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


async def open_embedder(settings: Settings, *, quiet: bool) -> Embedder:
    """The configured embedder, loaded in a thread. Raises EmbedderError, BundledModelError."""
    from anyio import to_thread

    from server import embedding

    def say(step: str) -> None:
        if not quiet:
            print(step, file=sys.stderr)

    return await to_thread.run_sync(embedding.open_embedder, settings, say)


@contextmanager
def readable(settings: Settings) -> Iterator[Settings]:
    """The settings, with a copy of the published index as the data directory where there is one.

    Raises PublishedError.
    """
    from server.published import BLOBS, PublishedError, take

    if settings.published_dir is None:
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="groundwire-copy-") as folder:
        copy = Path(folder) / "copy"
        if take(settings.published_dir, copy, leave_out=(BLOBS,)) is None:
            raise PublishedError(f"nothing is published in {settings.published_dir}")
        yield settings.model_copy(update={"data_dir": copy})


@dataclass(frozen=True)
class Searchable:
    """A store of the data directory, and what searches it."""

    store: Store
    retriever: Retriever
    lexical: LexicalIndex


@asynccontextmanager
async def open_searchable(
    settings: Settings, ref: str, reranker: Reranker | None = None
) -> AsyncIterator[Searchable]:
    """The store with this id, or the tenant `local`'s of this name, with Chroma and embedder opened for it.

    Raises CatalogError, RetrievalError, BundledModelError.
    """
    from retrieval.embed import QueryBatcher
    from retrieval.lexical import LexicalIndex
    from retrieval.search import connect
    from server.adopted import Indexes, QuerySide, QuerySides
    from server.canary import store_to_probe
    from server.catalog import Catalog
    from server.following import Following
    from server.retriever import uncached_retriever

    async with await Catalog.open(settings.resolved_catalog_url) as catalog:
        store = await store_to_probe(catalog, ref)
        embedder = await open_embedder(settings, quiet=True)
        if store.embedder is not None and store.adopted is None:
            await catalog.bind_embedder(store.id, embedder.name, embedder.dimension)
        if catalog.shared:
            await Following(catalog, settings.data_dir / "lexical").follow(store)
    batcher = QueryBatcher(embedder)
    sides = QuerySides(settings, QuerySide.of(embedder, batcher))
    indexes = Indexes(sides)
    try:
        await indexes.ready(store)
        async with connect(settings.data_dir, settings.chroma) as chroma:
            lexical = LexicalIndex(settings.data_dir / "lexical")
            retriever = uncached_retriever(
                settings, batcher, chroma.store, lexical, reranker, elsewhere=indexes.dense
            )
            yield Searchable(store, retriever, lexical)
    finally:
        await indexes.close()
        await sides.close()
        await batcher.close()

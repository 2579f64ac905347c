"""What answers come from: one version of the index, open, with everything that searches it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import RetrievalError
from retrieval.lexical import LexicalIndex
from retrieval.remember import CachedRetriever, Retrieves
from retrieval.rerank import Reranker
from retrieval.search import VectorStore, connect
from server.adopted import Indexes, QuerySide, QuerySides
from server.auth import Links, signing_key
from server.beside import beside
from server.catalog import Catalog, Store
from server.checkup import Checkup
from server.engine.base import Engine
from server.following import Following
from server.grounding import Grounding, GroundingSettings
from server.plan import Defaults
from server.retriever import Caches, cached_retriever, followup_weights, uncached_retriever
from server.settings import Settings
from server.start import StartTrace
from server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What every version of the index is served with."""

    settings: Settings
    engine: Engine
    sides: QuerySides
    reranker: Reranker | None
    caches: Caches
    metrics: Metrics


@dataclass(frozen=True)
class Storage:
    """A data directory's parts. `version` is the published version that it is a copy of; 0: of none.

    `following` is there where other machines write the catalog too.
    """

    version: int
    catalog: Catalog
    vectors: VectorStore
    lexical: LexicalIndex
    secret: bytes
    data_dir: Path
    following: Following | None = None


@dataclass(frozen=True)
class Knowledge:
    """Everything of a request that depends on the index; a request has the same one from start to end.

    `uncached` is the `retriever` without its caches, for who must neither use nor fill them.
    """

    version: int
    catalog: Catalog
    vectors: VectorStore
    lexical: LexicalIndex
    indexes: Indexes
    retriever: CachedRetriever
    uncached: Retrieves
    grounding: Grounding
    links: Links
    checkup: Checkup
    data_dir: Path


@asynccontextmanager
async def open_storage(
    settings: Settings, metrics: Metrics, version: int = 0, start: StartTrace | None = None
) -> AsyncIterator[Storage]:
    """The catalog, Chroma and keyword index of `settings.data_dir`; `start` times them. Raises what each raises."""
    start = StartTrace() if start is None else start
    settings.make_data_dir()
    restarted = metrics.chroma_restarts.inc
    async with AsyncExitStack() as stack:
        with start.step("catalog"):
            opening = await Catalog.open(settings.resolved_catalog_url)
            catalog = await stack.enter_async_context(opening)
        with start.step("chroma"):
            opened = connect(settings.data_dir, settings.chroma, on_restart=restarted)
            chroma = await stack.enter_async_context(opened)
        root = settings.data_dir / "lexical"
        following = Following(catalog, root) if catalog.shared else None
        secret = signing_key(settings.data_dir / "secret", settings.signing_secret)
        yield Storage(
            version, catalog, chroma.store, LexicalIndex(root), secret, settings.data_dir, following
        )


@asynccontextmanager
async def open_indexes(
    storage: Storage, sides: QuerySides, default_store: str | None
) -> AsyncIterator[Indexes]:
    """What each store is searched with; adopted ones are opened, where they can be, and the default one searched."""
    indexes = Indexes(sides, storage.following)
    try:
        stores = await storage.catalog.every_store()
        await indexes.warm(stores)
        default = [store for store in stores if default_store in (store.id, store.name)]
        await _search_once(default, storage, sides.own)
        yield indexes
    finally:
        await indexes.close()


async def _search_once(stores: Sequence[Store], storage: Storage, own: QuerySide) -> None:
    """Search our own of these stores both ways: connections and indexes open with their first use."""
    await storage.vectors.heartbeat()
    vector = await own.queries.embed("warm up")
    for store in stores:
        if store.adopted is not None:
            continue
        try:
            await storage.vectors.query(store.index_name, vector, 1)
            await asyncio.to_thread(storage.lexical.search, store.index_name, "warm up", 1)
        except RetrievalError as error:  # requests will be told, and `/ready` tells
            log.warning("the store %r cannot be searched: %s", store.name, error)


@asynccontextmanager
async def open_knowledge(
    storage: Storage, indexes: Indexes, parts: Parts
) -> AsyncIterator[Knowledge]:
    """All of it over an open storage; the stores are looked at, and followed, while it is open."""
    knowledge = knowledge_of(storage, indexes, parts)
    works = [knowledge.checkup.watch()]
    if storage.following is not None:
        works.append(storage.following.watch())
    async with beside(*works):
        yield knowledge


@asynccontextmanager
async def open_version(settings: Settings, version: int, parts: Parts) -> AsyncIterator[Knowledge]:
    """A version whose copy is `settings.data_dir`, for a server that has its other parts already."""
    async with (
        open_storage(settings, parts.metrics, version) as storage,
        open_indexes(storage, parts.sides, settings.default_store) as indexes,
        open_knowledge(storage, indexes, parts) as knowledge,
    ):
        yield knowledge


def knowledge_of(storage: Storage, indexes: Indexes, parts: Parts) -> Knowledge:
    """Everything that searches this storage, put together."""
    settings, own = parts.settings, parts.sides.own
    retriever = cached_retriever(
        settings,
        parts.caches,
        own.queries,
        storage.vectors,
        storage.lexical,
        parts.reranker,
        elsewhere=indexes.dense,
        version=storage.version,
    )
    return Knowledge(
        version=storage.version,
        catalog=storage.catalog,
        vectors=storage.vectors,
        lexical=storage.lexical,
        indexes=indexes,
        retriever=retriever,
        uncached=uncached_retriever(
            settings,
            own.queries,
            storage.vectors,
            storage.lexical,
            parts.reranker,
            elsewhere=indexes.dense,
        ),
        grounding=Grounding(
            parts.engine,
            retriever,
            storage.catalog,
            parts.caches.conversations,
            grounding_settings(settings),
            indexes,
        ),
        links=Links(storage.secret, signed=bool(settings.api_keys)),
        checkup=Checkup(storage.catalog, storage.lexical, own.name, indexes.check),
        data_dir=storage.data_dir,
    )


def grounding_settings(settings: Settings) -> GroundingSettings:
    """What grounding needs to know, by the settings."""
    return GroundingSettings(
        defaults=Defaults(
            default_store=settings.default_store,
            top_k=settings.top_k,
            max_context_tokens=settings.max_context_tokens,
            answer_reserve_tokens=settings.answer_reserve_tokens,
            on_error=settings.on_error,
            max_tokens=settings.resolved_max_tokens,
            media_domains=tuple(settings.allowed_media_domains),
            sticky=settings.sticky,
            max_choices=settings.max_choices,
            followup=followup_weights(settings),
        ),
        min_similarity=settings.min_similarity,
        timeout_seconds=settings.retrieval_timeout_seconds,
        sticky_context_tokens=settings.sticky_context_tokens,
    )

"""Stores whose vectors are not ours: the embedder and the Chroma that each of them is searched with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from retrieval.deadline import deadline
from retrieval.embed import QueryBatcher
from retrieval.embed.base import Embedder
from retrieval.errors import (
    DimensionMismatch,
    EmbedderAbsent,
    EmbedderError,
    RetrievalError,
    StoreUnavailable,
)
from retrieval.pipeline import Dense, QueryEmbedder
from retrieval.search import ChromaCollections, ChromaEndpoint
from retrieval.search.adopted import AdoptedSearch, CollectionFacts, Fields, check_dimension
from server.bundled import BundledModelError
from server.catalog import Adopted, EmbedderConflict, Store
from server.embedding import found_anywhere, open_other
from server.following import Following
from server.settings import Settings, SettingsError, headers_of

log = logging.getLogger(__name__)

#: A model's name and its query prefix: what tells one vector space of queries from another.
_Model = tuple[str, str | None]
#: What tells one connection from another: URL, tenant, database, and where its headers are.
_Source = tuple[str, str, str, str | None]


@dataclass(frozen=True, slots=True, eq=False)
class QuerySide:
    """An embedder that is loaded, and what queues its queries; `key` as in `Dense`."""

    key: str
    name: str
    dimension: int
    queries: QueryEmbedder

    @classmethod
    def of(cls, embedder: Embedder, queries: QueryEmbedder, key: str = "") -> QuerySide:
        return cls(key, embedder.name, embedder.dimension, queries)


class QuerySides:
    """Embedders of questions: the server's own, and those of adopted stores, each loaded when it is first needed.

    One that could not be loaded is not tried again before `forget_failures`. Used from one event loop.
    """

    def __init__(self, settings: Settings, own: QuerySide) -> None:
        self.own = own
        self._settings = settings
        self._sides: dict[_Model, asyncio.Task[QuerySide]] = {}
        self._batchers: list[QueryBatcher] = []

    async def close(self) -> None:
        for task in self._sides.values():
            task.cancel()
        for batcher in self._batchers:
            await batcher.close()

    async def side(self, store: Store, adopted: Adopted) -> QuerySide:
        """The store's embedder, loaded once for all stores that name it. Raises EmbedderAbsent."""
        settings = self._settings
        model = (adopted.embedder, adopted.query_prefix)
        if model == (found_anywhere(settings.embedder), settings.query_prefix):
            return self.own
        if model not in self._sides:
            self._sides[model] = asyncio.ensure_future(self._load(model))
        try:
            return await asyncio.shield(self._sides[model])
        except (EmbedderError, BundledModelError) as error:
            raise EmbedderAbsent(
                f"the store {store.name!r} needs the embedder {store.embedder!r}, which this server cannot "
                "load; its log says why"
            ) from error

    async def _load(self, model: _Model) -> QuerySide:
        embedder = await asyncio.to_thread(open_other, self._settings, *model, log.info)
        batcher = QueryBatcher(embedder)
        self._batchers.append(batcher)
        await batcher.embed("warm up")  # the first run compiles; no request should wait for that
        return QuerySide.of(embedder, batcher, key=repr(model))

    def forget_failures(self) -> None:
        for model, task in list(self._sides.items()):
            if task.done() and (task.cancelled() or task.exception() is not None):
                del self._sides[model]


def endpoint_of(adopted: Adopted) -> ChromaEndpoint:
    """Where the collection is. Raises StoreUnavailable where its headers are not in the environment."""
    try:
        headers = {} if adopted.headers_env is None else headers_of(adopted.headers_env)
    except SettingsError as error:
        raise StoreUnavailable(f"Chroma at {adopted.chroma_url}: {error}") from error
    endpoint = ChromaEndpoint.parse(adopted.chroma_url, headers)
    return replace(endpoint, tenant=adopted.chroma_tenant, database=adopted.chroma_database)


def fields_of(adopted: Adopted) -> Fields:
    return Fields(
        text=adopted.text_field,
        title=adopted.title_field,
        source=adopted.source_field,
        page=adopted.page_field,
    )


class Indexes:
    """What each store is searched with; used from one event loop.

    `following` brings keyword indexes up to date where other machines write the catalog too. An adopted store
    is opened when it is first asked for. An embedder that could not be loaded is not tried again before the next
    `check`; a Chroma that is away is. `sides` is closed by whoever made it.
    """

    def __init__(self, sides: QuerySides, following: Following | None = None) -> None:
        self._sides = sides
        self._following = following
        self._dense: dict[str, Dense] = {}
        self._opening: dict[str, asyncio.Task[CollectionFacts]] = {}
        self._readers: dict[_Source, ChromaCollections] = {}

    def dense(self, index_name: str) -> Dense | None:
        """What searches an adopted store that is open; None for our own."""
        return self._dense.get(index_name)

    async def ready(self, store: Store, until: float | None = None) -> None:
        """Return when the store can be searched.

        Raises EmbedderConflict for our own store of another embedder, RetrievalError for an adopted one
        (EmbedderAbsent, DimensionMismatch, StoreUnavailable), and DeadlineExceeded at `until`, in the event loop's
        time: what it waited for goes on.
        """
        if store.adopted is None:
            own = self._sides.own.name
            if store.embedder is not None and store.embedder != own:
                raise EmbedderConflict(store.name or store.id, store.embedder, own)
            if self._following is None:
                return
        elif self._following is None and store.index_name in self._dense:
            return
        late = (
            f"the store {store.name!r} is still being opened: its passages are being copied, its embedder "
            "is loading, or its Chroma does not answer"
        )
        async with deadline(until, late):
            if self._following is not None:
                await self._following.follow(store, wait_seconds=0)
            if store.adopted is not None and store.index_name not in self._dense:
                await self._opened(store, store.adopted)

    async def check(self, store: Store) -> str | None:
        """What is wrong with an adopted store, and what helps; looks anew at all of it."""
        adopted = store.adopted
        if adopted is None:
            return None
        self._sides.forget_failures()
        again = "run `groundwire adopt` again"
        try:
            facts = await self._opened(store, adopted)
        except DimensionMismatch as error:
            return f"cannot be searched: {error}"
        except EmbedderError as error:
            return f"cannot be searched: {error.__cause__ or error}"
        except RetrievalError as error:
            return f"cannot be searched: {error}; where the collection has moved, {again}"
        if facts.rows != adopted.rows:
            return f"holds {facts.rows} rows, and {adopted.rows} when it was last read: {again}"
        return None

    async def warm(self, stores: Iterable[Store]) -> None:
        """Open the adopted ones of these stores; those that cannot be opened are `check`'s to name.

        Raises CatalogUnavailable.
        """
        if self._following is not None:
            await self._following.look()
        adopted = [store for store in stores if store.adopted is not None]
        await asyncio.gather(*map(self.check, adopted))

    async def close(self) -> None:
        if self._following is not None:
            await self._following.close()
        for task in self._opening.values():
            task.cancel()
        for reader in self._readers.values():
            await reader.close()

    async def _opened(self, store: Store, adopted: Adopted) -> CollectionFacts:
        """Open the store, once for all who wait; one that leaves does not end it."""
        name = store.index_name
        task = self._opening.get(name)
        if task is None:
            task = self._opening[name] = asyncio.ensure_future(self._open(store, adopted))
            task.add_done_callback(lambda done: self._ended(name, done))
        return await asyncio.shield(task)

    def _ended(self, name: str, done: asyncio.Task[CollectionFacts]) -> None:
        del self._opening[name]
        if not done.cancelled():
            done.exception()  # heard: whoever waited may have left

    async def _open(self, store: Store, adopted: Adopted) -> CollectionFacts:
        side = await self._sides.side(store, adopted)
        reader = self._reader(adopted)
        facts = await reader.facts(adopted.collection)
        try:
            check_dimension(facts, side.name, side.dimension)
        except DimensionMismatch:
            self._dense.pop(store.index_name, None)
            raise
        fields, unit = fields_of(adopted), facts.unit
        search = AdoptedSearch(reader, adopted.collection, fields, facts.space, unit=unit)
        for other in [name for name in self._dense if name.partition(".")[0] == store.id]:
            del self._dense[other]  # the store as it was before it was adopted again
        self._dense[store.index_name] = Dense(side.key, side.queries, search)
        return facts

    def _reader(self, adopted: Adopted) -> ChromaCollections:
        source = (
            adopted.chroma_url,
            adopted.chroma_tenant,
            adopted.chroma_database,
            adopted.headers_env,
        )
        if source not in self._readers:
            self._readers[source] = ChromaCollections(endpoint_of(adopted))
        return self._readers[source]

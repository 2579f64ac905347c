"""Chroma over HTTP: the only file that imports chromadb."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from operator import methodcaller
from typing import Any, TypeVar

import httpx
import numpy as np

from retrieval.embed.base import Vectors
from retrieval.errors import DimensionMismatch, StoreUnavailable
from retrieval.search.base import ChromaEndpoint, VectorRow
from retrieval.search.batcher import SearchBatcher
from retrieval.types import HASH_DIGITS, Hit

T = TypeVar("T")

#: Chroma's words when a vector has the wrong size (rust/types/src/collection.rs).
DIMENSION_ERROR = re.compile(r"dimension of (\d+), got (\d+)")
#: Collections that prove whose server answers; a store's id never begins like this.
TOKEN_PREFIX = "groundwire-owner-"
#: Ids per delete request; keeps one request well under the server's body limit.
DELETE_BATCH = 1000


def _open_client(endpoint: ChromaEndpoint, http: httpx.AsyncClient) -> Awaitable[Any]:
    """What `chromadb.AsyncHttpClient` makes for `endpoint`, but with connections of its own.

    chromadb keeps one httpx client per event loop for all its clients: the headers of whichever came
    first go to every server, there is no timeout, TLS certificates are not checked, and a proxy from the
    environment is used even for loopback. Setting `_clients` replaces that shared one by ours; the check of
    tenant and database would still go through the shared one, so it is made here.
    """
    from chromadb.api import AsyncServerAPI
    from chromadb.api.async_client import AsyncClient
    from chromadb.config import Settings

    class Client(AsyncClient):  # type: ignore[misc]  # chromadb is untyped for us
        def __init__(self, settings: Any) -> None:
            super().__init__(settings=settings)
            loop_key = asyncio.get_running_loop().__hash__()
            self._system.instance(AsyncServerAPI)._clients = {loop_key: http}

        async def _validate_tenant_database(self, tenant: str, database: str) -> None:
            await self._server.get_tenant(name=tenant)
            await self._server.get_database(name=database, tenant=tenant)

    settings = Settings(
        _env_file=None,  # not whatever .env lies in the working directory
        chroma_api_impl="chromadb.api.async_fastapi.AsyncFastAPI",
        chroma_server_host=endpoint.bracketed_host,
        chroma_server_http_port=endpoint.port,
        chroma_server_ssl_enabled=endpoint.ssl,
        chroma_server_headers=dict(endpoint.headers),
        chroma_client_auth_provider=None,
        chroma_otel_collection_endpoint="",
        anonymized_telemetry=False,
    )
    opened: Awaitable[Any] = Client.create(endpoint.tenant, endpoint.database, settings)
    return opened


class _Connection:
    """One client of one server, with the collection handles it has looked up."""

    def __init__(self, endpoint: ChromaEndpoint, http: httpx.AsyncClient, client: Any) -> None:
        self.endpoint = endpoint
        self.http = http
        self.client = client
        self.collections: dict[str, Any] = {}

    @classmethod
    async def open(cls, endpoint: ChromaEndpoint) -> _Connection:
        # The first import takes a second: not in the event loop.
        await asyncio.to_thread(__import__, "chromadb.api.async_client")
        http = await asyncio.to_thread(
            httpx.AsyncClient,
            headers={"Content-Type": "application/json", **endpoint.headers},
            timeout=None,  # every call runs under asyncio.timeout
            trust_env=not endpoint.is_loopback,
        )
        try:
            return cls(endpoint, http, await _open_client(endpoint, http))
        except BaseException:
            await http.aclose()
            raise


class ChromaStore:
    """The VectorStore over a Chroma server, for use from one event loop.

    `endpoint` may be a function, asked before each call: a supervised server can come back elsewhere.
    It may itself raise StoreUnavailable.
    """

    def __init__(
        self,
        endpoint: ChromaEndpoint | Callable[[], ChromaEndpoint],
        *,
        query_timeout_seconds: float = 10.0,
        write_timeout_seconds: float = 60.0,
    ) -> None:
        self._endpoint = endpoint
        self._query_timeout_seconds = query_timeout_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._searches = SearchBatcher(self._search)
        self._closed = False

    async def upsert(self, store_id: str, rows: Sequence[VectorRow]) -> None:
        if not rows:
            return
        async with self._answering(self._query_timeout_seconds) as connection:
            size: int = await connection.client.get_max_batch_size()
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            payload = {
                "ids": [row.passage_id for row in batch],
                "embeddings": np.stack([row.vector for row in batch]).astype(np.float32),
                "metadatas": [_metadata(row) for row in batch],
            }
            write = methodcaller("upsert", **payload)
            async with self._answering(self._write_timeout_seconds) as connection:
                await on_collection(connection, store_id, write, create=True)

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        return await self._searches.query(store_id, vector, k) if k > 0 else []

    async def _search(self, store_id: str, vectors: Vectors, k: int) -> list[list[Hit]]:
        """The `k` nearest rows to each of `vectors`, shape (n, dim)."""
        ask = methodcaller("query", query_embeddings=vectors, n_results=k, include=["distances"])
        async with self._answering(self._query_timeout_seconds) as connection:
            found = await on_collection(connection, store_id, ask)
        if found is None:
            return [[] for _ in vectors]
        pages = zip(found["ids"], found["distances"], strict=True)
        return [_hits(ids, distances) for ids, distances in pages]

    async def delete_passages(self, store_id: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), DELETE_BATCH):
            delete = methodcaller("delete", ids=list(ids[start : start + DELETE_BATCH]))
            async with self._answering(self._write_timeout_seconds) as connection:
                await on_collection(connection, store_id, delete)

    async def delete_file(self, store_id: str, file_id: str, keep_hash: str | None = None) -> None:
        where: dict[str, Any] = {"file_id": file_id}
        if keep_hash is not None:
            where = {"$and": [where, {"content_hash": {"$ne": keep_hash[:HASH_DIGITS]}}]}
        async with self._answering(self._write_timeout_seconds) as connection:
            await on_collection(connection, store_id, methodcaller("delete", where=where))

    async def delete_store(self, store_id: str) -> None:
        async with self._answering(self._write_timeout_seconds) as connection:
            connection.collections.pop(store_id, None)
            await _unless_missing(connection.client.delete_collection(store_id))

    async def count(self, store_id: str) -> int:
        async with self._answering(self._query_timeout_seconds) as connection:
            found: int | None = await on_collection(connection, store_id, methodcaller("count"))
        return found or 0

    async def heartbeat(self) -> None:
        async with self._answering(self._query_timeout_seconds) as connection:
            await connection.client.heartbeat()

    async def plant_token(self, token: str) -> None:
        """Leave a mark on the server that only who knows `token` can look for."""
        async with self._answering(self._query_timeout_seconds) as connection:
            await connection.client.get_or_create_collection(
                TOKEN_PREFIX + token, embedding_function=None
            )

    async def has_token(self, token: str) -> bool:
        """Whether this is the server on which `plant_token(token)` was done."""
        async with self._answering(self._query_timeout_seconds) as connection:
            found = await _unless_missing(
                connection.client.get_collection(TOKEN_PREFIX + token, embedding_function=None)
            )
        return found is not None

    async def remove_token(self, token: str) -> None:
        await self.delete_store(TOKEN_PREFIX + token)

    async def close(self) -> None:
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.http.aclose()

    @asynccontextmanager
    async def _answering(self, timeout_seconds: float) -> AsyncIterator[_Connection]:
        """A connection to the current endpoint; inside, failures become retrieval's own errors."""
        endpoint = (
            self._endpoint if isinstance(self._endpoint, ChromaEndpoint) else self._endpoint()
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                yield await self._connected(endpoint)
        except (DimensionMismatch, StoreUnavailable):
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"Chroma at {endpoint.described} did not answer within {timeout_seconds:g} s"
            ) from error
        # Not narrower: chromadb raises a bare Exception for each error body that it does not know, and
        # KeyError or ValueError when something else than Chroma answers.
        except Exception as error:
            raise _translated(error, endpoint) from error

    async def _connected(self, endpoint: ChromaEndpoint) -> _Connection:
        current = self._connection
        if current is not None and current.endpoint == endpoint:
            return current
        async with self._connecting:
            if self._closed:
                raise StoreUnavailable("the connection to Chroma was closed")
            current = self._connection
            if current is not None and current.endpoint == endpoint:
                return current
            self._connection = await _Connection.open(endpoint)
            if current is not None:
                await current.http.aclose()
            return self._connection


def _hits(ids: Sequence[str], distances: Sequence[float]) -> list[Hit]:
    pairs = zip(ids, distances, strict=True)
    return [Hit(key, min(1.0, max(-1.0, 1.0 - distance))) for key, distance in pairs]


def _metadata(row: VectorRow) -> dict[str, str | int]:
    return {
        "file_id": row.file_id,
        "content_hash": row.content_hash[:HASH_DIGITS],
        "chunk": row.chunk,
    }


async def on_collection(
    connection: _Connection,
    store_id: str,
    call: Callable[[Any], Awaitable[Any]],
    *,
    create: bool = False,
) -> Any:
    """Run `call` on the store's collection; None where there is none (it is made with `create`).

    A handle holds the collection's id: one that was deleted and made again needs a fresh handle, once.
    """
    from chromadb.errors import NotFoundError

    for _ in range(2):
        collection = connection.collections.get(store_id)
        if collection is None:
            collection = await _collection(connection.client, store_id, create=create)
            if collection is None:
                return None
            connection.collections[store_id] = collection
        try:
            return await call(collection)
        except NotFoundError as error:
            connection.collections.pop(store_id, None)
            missing = error
    if create:
        raise missing
    return None


async def _collection(client: Any, store_id: str, *, create: bool) -> Any:
    if create:
        return await client.get_or_create_collection(
            store_id, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
    return await _unless_missing(client.get_collection(store_id, embedding_function=None))


async def _unless_missing(call: Awaitable[T]) -> T | None:
    """The result, or None where Chroma says that the collection does not exist."""
    from chromadb.errors import NotFoundError

    try:
        return await call
    except NotFoundError:
        return None


def _translated(error: Exception, endpoint: ChromaEndpoint) -> Exception:
    mismatch = DIMENSION_ERROR.search(str(error))
    if mismatch:
        stored, given = mismatch.groups()
        return DimensionMismatch(
            f"the store holds vectors of {stored} dimensions and the embedder makes {given}: "
            "use the embedder that filled the store, or ingest into a new store"
        )
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, httpx.TransportError):
        return StoreUnavailable(f"Chroma at {endpoint.described} does not answer: {reason}")
    return StoreUnavailable(f"Chroma at {endpoint.described} refused the request: {reason[:300]}")

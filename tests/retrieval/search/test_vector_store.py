"""ChromaStore against a real Chroma, and against servers that are none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import numpy as np
import pytest

from retrieval.errors import DimensionMismatch, StoreUnavailable
from retrieval.search import ChromaEndpoint, ChromaStore
from retrieval.search.child import free_port
from tests.retrieval.search.search_support import HASH, chroma_run, row, vector

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaEndpoint]:
    with chroma_run(tmp_path_factory.mktemp("chroma")) as endpoint:
        yield endpoint


@pytest.fixture
async def store(server: ChromaEndpoint) -> AsyncIterator[ChromaStore]:
    store = ChromaStore(server)
    yield store
    await store.close()


@pytest.fixture
def name() -> str:
    return f"vs_{uuid4().hex}"


async def test_query_ranks_by_cosine(store: ChromaStore, name: str) -> None:
    rows = [row(0, [0, 1, 0]), row(1, [1, 0, 0]), row(2, [-1, 0, 0]), row(3, [0.6, 0.8, 0])]
    await store.upsert(name, rows)
    hits = await store.query(name, vector(2, 0, 0), 10)  # length does not matter to a cosine
    assert [hit.passage_id for hit in hits] == [rows[i].passage_id for i in (1, 3, 0, 2)]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.0, -1.0], abs=1e-5)
    assert len(await store.query(name, vector(1, 0, 0), 2)) == 2
    assert await store.query(name, vector(1, 0, 0), 0) == []


async def test_upsert_replaces_the_row_of_the_same_id(store: ChromaStore, name: str) -> None:
    await store.upsert(name, [row(0, [1, 0])])
    await store.upsert(name, [row(0, [0, 1])])
    assert await store.count(name) == 1
    assert (await store.query(name, vector(0, 1), 1))[0].score == pytest.approx(1.0)


async def test_delete_file_keeps_the_named_version_and_other_files(
    store: ChromaStore, name: str
) -> None:
    old, new = "b" * 64, HASH
    other = row(0, [0, 1], "file-2", old)
    await store.upsert(name, [row(0, [1, 0], content_hash=old), row(0, [1, 0]), other])
    await store.delete_file(name, "file-1", keep_hash=new)
    left = {hit.passage_id for hit in await store.query(name, vector(1, 0), 10)}
    assert left == {row(0, [1, 0]).passage_id, other.passage_id}
    await store.delete_file(name, "file-1")
    assert [hit.passage_id for hit in await store.query(name, vector(1, 0), 10)] == [
        other.passage_id
    ]


async def test_a_store_without_collection_is_empty(store: ChromaStore, name: str) -> None:
    assert await store.query(name, vector(1, 0), 5) == []
    assert await store.count(name) == 0
    await store.upsert(name, [])
    await store.delete_passages(name, ["file-1/aaaaaaaaaaaaaaaa/0"])
    await store.delete_file(name, "file-1", keep_hash=HASH)
    await store.delete_store(name)
    assert await store.count(name) == 0


async def test_wrong_dimension_names_both_numbers(store: ChromaStore, name: str) -> None:
    await store.upsert(name, [row(0, [1, 0, 0])])
    with pytest.raises(DimensionMismatch, match=r"3 dimensions .* makes 2"):
        await store.query(name, vector(1, 0), 1)
    with pytest.raises(DimensionMismatch, match=r"3 dimensions .* makes 2"):
        await store.upsert(name, [row(1, [1, 0])])
    assert await store.count(name) == 1


async def test_more_rows_than_one_batch_takes(store: ChromaStore, name: str) -> None:
    angles = np.linspace(0, 2 * np.pi, 5600)
    rows = [row(i, [np.cos(angle), np.sin(angle)]) for i, angle in enumerate(angles)]
    await store.upsert(name, rows)
    assert await store.count(name) == 5600
    await store.delete_passages(name, [r.passage_id for r in rows[:1100]])
    assert await store.count(name) == 4500
    await store.delete_file(name, "file-1", keep_hash="b" * 64)
    assert await store.count(name) == 0


async def test_a_collection_made_again_by_another_client_is_found(
    store: ChromaStore, server: ChromaEndpoint, name: str
) -> None:
    await store.upsert(name, [row(0, [1, 0])])
    async with contextlib.aclosing(_Closing(ChromaStore(server))) as other:
        await other.store.delete_store(name)
        assert await store.query(name, vector(1, 0), 5) == []
        await other.store.upsert(name, [row(7, [1, 0])])
        assert len(await store.query(name, vector(1, 0), 5)) == 1
        await other.store.delete_store(name)
        await store.upsert(name, [row(8, [1, 0])])
        assert await other.store.count(name) == 1


async def test_requests_side_by_side_share_one_connection(store: ChromaStore, name: str) -> None:
    await store.upsert(name, [row(0, [1, 0])])
    results = await asyncio.gather(*(store.query(name, vector(1, 0), 1) for _ in range(20)))
    assert [len(hits) for hits in results] == [1] * 20


async def test_nobody_listening(name: str) -> None:
    store = ChromaStore(ChromaEndpoint("127.0.0.1", free_port()))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.query(name, vector(1, 0), 1)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.heartbeat()
    await store.close()


async def test_a_server_that_never_answers_is_given_up(name: str) -> None:
    async with fake_server(reply=None) as (endpoint, _):
        store = ChromaStore(endpoint, query_timeout_seconds=0.2)
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s"):
            await store.query(name, np.ones(2, dtype=np.float32), 1)
        await store.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
async def test_a_server_that_is_no_chroma(reply: bytes, name: str) -> None:
    async with fake_server(reply) as (endpoint, _):
        store = ChromaStore(endpoint)
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{endpoint.port}"):
            await store.count(name)
        await store.close()


async def test_each_server_gets_its_own_headers_only() -> None:
    identity = b'{"user_id": "u", "tenant": "default_tenant", "databases": ["default_database"]}'
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + identity
    async with fake_server(reply) as (first, heard), fake_server(reply) as (second, overheard):
        for bare, key in ((first, "one"), (second, "two")):
            endpoint = ChromaEndpoint.parse(bare.url, {"x-chroma-token": key})
            store = ChromaStore(endpoint)
            with pytest.raises(StoreUnavailable):
                await store.heartbeat()
            await store.close()
    assert len(heard) == len(overheard) == 2  # who am I; does the tenant exist
    assert all("x-chroma-token: one" in request for request in heard)
    assert all("x-chroma-token: two" in request for request in overheard)


async def test_loopback_ignores_the_environment(
    server: ChromaEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("CHROMA_SERVER_HOST", "elsewhere")
    store = ChromaStore(server)
    await store.heartbeat()
    await store.close()


async def test_the_endpoint_is_asked_again_when_the_server_moves(
    server: ChromaEndpoint, name: str
) -> None:
    endpoints = [ChromaEndpoint("127.0.0.1", free_port()), server]
    store = ChromaStore(lambda: endpoints[0])
    with pytest.raises(StoreUnavailable):
        await store.count(name)
    endpoints.pop(0)
    assert await store.count(name) == 0
    await store.close()
    endpoints[0] = ChromaEndpoint("127.0.0.1", free_port())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.count(name)


def test_endpoint_from_url() -> None:
    assert ChromaEndpoint.parse("http://db:8000/") == ChromaEndpoint("db", 8000)
    assert ChromaEndpoint.parse("https://db") == ChromaEndpoint("db", 443, ssl=True)
    assert ChromaEndpoint.parse("http://[::1]:9").netloc == "[::1]:9"
    assert "secret" not in repr(ChromaEndpoint.parse("http://db", {"x-chroma-token": "secret"}))


@pytest.mark.parametrize(
    "url", ["db:8000", "ftp://db", "http://", "http://u:secret@db", "http://db/x", "http://db?a=b"]
)
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Chroma URL") as caught:
        ChromaEndpoint.parse(url)
    assert "secret" not in str(caught.value)


class _Closing:
    """A store with the method name that `aclosing` asks for."""

    def __init__(self, store: ChromaStore) -> None:
        self.store = store

    async def aclose(self) -> None:
        await self.store.close()


@asynccontextmanager
async def fake_server(reply: bytes | None) -> AsyncIterator[tuple[ChromaEndpoint, list[str]]]:
    """A listener that answers every connection with `reply` (None: never), and what it heard."""
    heard: list[str] = []
    done = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if reply is None:
            await done.wait()
        else:
            writer.write(reply)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        yield ChromaEndpoint("127.0.0.1", listener.sockets[0].getsockname()[1]), heard
        done.set()

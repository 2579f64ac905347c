"""`reindex`: another embedder, other chunking, a kill in the middle; searches answer throughout."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from retrieval.cache import Bounds, Cache
from retrieval.embed import Embedder, QueryBatcher
from retrieval.lexical import LexicalIndex
from retrieval.pipeline import Retriever
from retrieval.remember import CachedRetriever, RetrievalKey, retrieval_bytes
from retrieval.search import ChromaChild, connect
from retrieval.trace import Trace
from retrieval.types import Query, Retrieval
from server.catalog import Catalog, EmbedderConflict, Store, index_name
from server.ingestion import IngestEvent, ReindexJob, ReindexReport, ingest_paths, reindex_stores
from tests.server.ingest_child import HashEmbedder, job

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("ingest_child.py")
OTHER = "other"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def chroma_url(
    anyio_backend: str,  # noqa: ARG001 - makes the loop live as long as the child
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[str]:
    async with ChromaChild(tmp_path_factory.mktemp("chroma")) as child:
        yield child.endpoint.url


@dataclass
class World:
    root: Path
    data_dir: Path
    chroma_url: str
    events: list[IngestEvent] = field(default_factory=list)

    async def ingest(self, embedder: Embedder | None = None) -> None:
        one = replace(job(self.data_dir, self.root, chroma_url=self.chroma_url), prune=False)
        await ingest_paths(one, embedder or HashEmbedder())

    async def reindex(
        self, embedder: Embedder, on_event: Any = None, **changes: Any
    ) -> ReindexReport:
        one = ReindexJob(
            ("docs",), self.data_dir, job(self.data_dir).catalog_url, self.chroma_url,
            chunk_tokens=40, grace_seconds=0,
        )  # fmt: skip
        (report,) = await reindex_stores(
            replace(one, **changes), embedder, on_event or self.events.append
        )
        return report

    async def store(self) -> Store:
        async with await self.catalog() as catalog:
            return await catalog.find_store("local", "docs")

    async def catalog(self) -> Catalog:
        return await Catalog.open(job(self.data_dir).catalog_url)

    async def search(self, text: str, embedder: Embedder) -> list[str]:
        """File names by dense search and keywords, each of which must have found something."""
        store = await self.store()
        batcher = QueryBatcher(embedder)
        try:
            async with connect(self.data_dir, self.chroma_url) as chroma:
                retriever = Retriever(
                    batcher, chroma.store, LexicalIndex(self.data_dir / "lexical")
                )
                query = Query(text, (store.index_name,), 100)
                found = (await retriever.retrieve(query, Trace())).candidates
        finally:
            await batcher.close()
        stages = {stage for candidate in found for stage in candidate.scores}
        assert not found or stages == {"search", "lexical"}
        return [candidate.passage.filename for candidate in found]

    async def rows(self, generation: int) -> tuple[int, int]:
        """Rows in (Chroma, keyword index) of one generation."""
        name = index_name((await self.store()).id, generation)
        async with connect(self.data_dir, self.chroma_url) as chroma:
            lexical = LexicalIndex(self.data_dir / "lexical").count(name)
            return await chroma.store.count(name), lexical


@pytest.fixture
async def world(tmp_path: Path, chroma_url: str) -> World:
    root = tmp_path / "files"
    root.mkdir()
    for number in range(3):
        text = "\n\n".join(f"The quagga {number} of paragraph {p}. " * 4 for p in range(6))
        (root / f"{number}.txt").write_text(text)
    made = World(root, tmp_path / "data", chroma_url)
    await made.ingest()
    return made


async def test_another_embedder_of_another_size(world: World) -> None:
    other = HashEmbedder(OTHER, 32)
    before = await world.store()
    with pytest.raises(EmbedderConflict, match=r"groundwire reindex.*store"):
        await world.ingest(other)
    report = await world.reindex(other)
    assert (report.files, report.failed, report.embedder) == (3, (), OTHER)
    after = await world.store()
    assert (after.id, after.embedder, after.dimension) == (before.id, OTHER, 32)
    assert after.version > before.version
    assert set(await world.search("quagga 1 paragraph 2", other)) == {"0.txt", "1.txt", "2.txt"}
    assert await world.rows(0) == (0, 0)
    assert await world.rows(1) == (report.chunks, report.chunks)
    await world.ingest(other)  # and the store takes files again
    assert await world.rows(1) == (report.chunks, report.chunks)


async def test_other_chunking_reaches_the_passages_that_citations_lead_to(world: World) -> None:
    coarse = await world.reindex(HashEmbedder(), chunk_tokens=200)
    fine = await world.reindex(HashEmbedder(), chunk_tokens=20)
    assert fine.chunks > coarse.chunks
    store = await world.store()
    async with await world.catalog() as catalog:
        assert (await catalog.store_totals(store.id)).passages == fine.chunks
        for member in await catalog.memberships(store.id):
            kept = await catalog.passages_of(store.id, member.file.id, member.file.content_hash)
            assert len(kept) == member.chunks
            assert member.chunking["max_tokens"] == 20


async def test_searches_see_the_old_index_until_the_new_one_is_complete(world: World) -> None:
    seen = []

    class Looking(HashEmbedder):
        def embed_passages(self, texts: Any) -> Any:
            store = anyio.from_thread.run(world.store)
            seen.append((store.generation, store.embedder))
            return super().embed_passages(texts)

    await world.reindex(Looking(OTHER, 32))
    assert seen
    assert set(seen) == {(0, "hash")}


def _killed_at_the_first_vectors(world: World) -> int:
    command = [sys.executable, str(CHILD), str(world.data_dir), "reindex", world.chroma_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("embedded"):
                process.kill()
                break
    return process.returncode


async def test_a_kill_in_the_middle_leaves_the_old_index_and_no_rubbish(world: World) -> None:
    assert await anyio.to_thread.run_sync(_killed_at_the_first_vectors, world) == -signal.SIGKILL
    assert (await world.store()).generation == 0
    assert set(await world.search("quagga", HashEmbedder())) == {"0.txt", "1.txt", "2.txt"}

    report = await world.reindex(HashEmbedder(OTHER, 32))
    assert await world.rows(1) == (report.chunks, report.chunks)
    assert await world.rows(0) == (0, 0)


async def test_a_file_whose_bytes_are_gone_keeps_its_passages(world: World) -> None:
    store = await world.store()
    async with await world.catalog() as catalog:
        lost = (await catalog.memberships(store.id))[1].file
    digest = lost.content_hash
    (world.data_dir / "blobs" / digest[:2] / digest).unlink()
    other = HashEmbedder(OTHER, 32)
    report = await world.reindex(other)
    ((name, reason),) = report.failed
    assert name == lost.filename
    assert "bytes are gone; it keeps" in reason
    assert set(await world.search("quagga", other)) == {"0.txt", "1.txt", "2.txt"}


async def test_progress_counts_every_file(world: World) -> None:
    await world.reindex(HashEmbedder())
    kinds = [event.kind for event in world.events]
    assert kinds.count("replaced") == 3
    assert world.events[0].total == 3
    assert world.events[-1].done == 3


async def test_a_damaged_keyword_index_is_rebuilt(world: World) -> None:
    store = await world.store()
    (world.data_dir / "lexical" / store.index_name / "meta.json").write_text("{}")
    await world.reindex(HashEmbedder())
    assert len(set(await world.search("quagga", HashEmbedder()))) == 3


async def test_no_cache_serves_what_the_switch_replaced(world: World) -> None:
    """A server that remembers retrievals, across a reindex with the embedder that it has."""
    embedder = HashEmbedder()
    batcher = QueryBatcher(embedder)
    cache: Cache[RetrievalKey, Retrieval] = Cache(Bounds(10, 10**7), retrieval_bytes)
    async with connect(world.data_dir, world.chroma_url) as chroma:
        lexical = LexicalIndex(world.data_dir / "lexical")
        remembering = CachedRetriever(Retriever(batcher, chroma.store, lexical), lexical, cache)

        async def ask() -> tuple[set[str], list[str]]:
            store, trace = await world.store(), Trace()
            query, scope = (
                Query("quagga", (store.index_name,), 100),
                ((store.tenant, store.version),),
            )
            found = await remembering.retrieve(query, trace, scope=scope)
            return {candidate.passage.text for candidate in found.candidates}, trace.cached

        before, _ = await ask()
        assert await ask() == (before, ["retrieval"])
        await world.reindex(embedder, chunk_tokens=20)
        after, cached = await ask()
        assert cached == []
        assert after
        assert not after & before
        assert await ask() == (after, ["retrieval"])
    await batcher.close()

"""The use case behind `groundwire reindex`: a store's vectors and keyword index, built again from the kept bytes.

The new index is built beside the old one, under a name of its own, and one catalog transaction makes it the
store's: until then searches use the old one, and whatever an interruption leaves is invisible and goes with
the next attempt. A file that can no longer be read keeps the passages that it had.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from retrieval.embed.base import Embedder
from retrieval.errors import UnreadableFile
from retrieval.ingest.index import IndexedFile, IndexWriter
from retrieval.lexical import drop
from retrieval.search import ChromaEndpoint, VectorStore, connect
from retrieval.types import Passage
from server.catalog import (
    LOCAL_TENANT,
    BlobStore,
    Catalog,
    Membership,
    RebuiltFile,
    Store,
    index_name,
)
from server.following import open_writer
from server.ingestion.cut import Cutter
from server.ingestion.lock import IngestError, catalog_claim, ingest_lock
from server.ingestion.report import IngestEvent, Outcome, ReindexReport
from server.ingestion.run import OnEvent

#: Passages that share one commit of the keyword index and one transaction of the catalog.
_GROUP_PASSAGES = 512


@dataclass(frozen=True, slots=True)
class ReindexJob:
    """Which stores to rebuild: ids or names, or none of them for all of the tenant's own.

    `grace_seconds` is how long the old index stays for searches that had already chosen it.
    """

    stores: tuple[str, ...]
    data_dir: Path
    catalog_url: str
    chroma: ChromaEndpoint | str | None = None
    tenant: str = LOCAL_TENANT
    chunk_tokens: int = 256
    chunk_overlap_tokens: int = 0
    max_file_bytes: int = 100 * 2**20
    lock_timeout_seconds: float = 600.0
    grace_seconds: float = 5.0


async def reindex_stores(
    job: ReindexJob, embedder: Embedder, on_event: OnEvent = lambda _: None
) -> list[ReindexReport]:
    """Rebuild stores with `embedder` and today's chunking; says for each what came of its files.

    Raises CatalogError (no such store), RetrievalError (Chroma is away), IngestBusy, and IngestError for
    a store that was adopted: it has no bytes here.
    """
    cutter = Cutter(
        embedder,
        chunk_tokens=job.chunk_tokens,
        overlap_tokens=job.chunk_overlap_tokens,
        max_file_bytes=job.max_file_bytes,
    )

    def waiting(pid: str) -> None:
        on_event(IngestEvent("waiting", detail=pid))

    lock = ingest_lock(job.data_dir / "ingest.lock", job.lock_timeout_seconds, waiting)
    async with (
        lock,
        await Catalog.open(job.catalog_url) as catalog,
        catalog_claim(catalog, job.lock_timeout_seconds, waiting),
    ):
        chosen = await _chosen(catalog, job)
        async with connect(job.data_dir, job.chroma) as chroma:
            return [
                await _Rebuild(job, store, catalog, chroma.store, embedder, cutter, on_event).run()
                for store in chosen
            ]


async def _chosen(catalog: Catalog, job: ReindexJob) -> list[Store]:
    if not job.stores:
        return [store for store in await catalog.list_stores(job.tenant) if store.adopted is None]
    chosen = [await catalog.find_store(job.tenant, ref) for ref in dict.fromkeys(job.stores)]
    for store in chosen:
        if store.adopted is not None:
            raise IngestError(
                f"the store {store.name!r} was adopted from {store.adopted.collection!r} at "
                f"{store.adopted.chroma_url}: there are no bytes here to rebuild it from. `groundwire "
                "adopt` with the same name reads the collection again"
            )
    return chosen


@dataclass(frozen=True, slots=True)
class _Cut:
    member: Membership
    digest: str
    passages: tuple[Passage, ...]
    rebuilt: RebuiltFile
    fresh: bool


class _Rebuild:
    """One store's next generation."""

    def __init__(
        self,
        job: ReindexJob,
        store: Store,
        catalog: Catalog,
        vectors: VectorStore,
        embedder: Embedder,
        cutter: Cutter,
        on_event: OnEvent,
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._vectors = vectors
        self._embedder = embedder
        self._cutter = cutter
        self._on_event = on_event
        self._root = job.data_dir / "lexical"
        self._blobs = BlobStore(job.data_dir.resolve() / "blobs")
        self._files: list[RebuiltFile] = []
        self._failed: list[tuple[str, str]] = []
        self._chunks = 0
        self._total = 0

    async def run(self) -> ReindexReport:
        started = time.perf_counter()
        store, generation = self._store, self._store.generation + 1
        # What an earlier attempt left, before or after its switch.
        await self._discard(generation)
        if store.generation:
            await self._discard(store.generation - 1)
        await self._catalog.discard_staged(store.id)
        await self._build(index_name(store.id, generation))
        await self._catalog.switch(
            store.id, generation, self._embedder.name, self._embedder.dimension, self._files
        )
        await anyio.sleep(self._job.grace_seconds)
        await self._discard(store.generation)
        return ReindexReport(
            store_id=store.id,
            store_name=store.name,
            embedder=self._embedder.name,
            files=len(self._files),
            failed=tuple(self._failed),
            chunks=self._chunks,
            seconds=time.perf_counter() - started,
        )

    async def _discard(self, generation: int) -> None:
        name = index_name(self._store.id, generation)
        await to_thread.run_sync(drop, self._root, name)
        await self._vectors.delete_store(name)

    async def _build(self, name: str) -> None:
        members = await self._catalog.memberships(self._store.id)
        self._total = len(members)
        self._on_event(IngestEvent("found", total=self._total))
        async with open_writer(self._root, name) as lexical:
            index = IndexWriter(name, self._embedder, self._vectors, lexical)
            group: list[_Cut] = []
            for member in members:
                cut = await self._cut(member)
                if cut is not None:
                    group.append(cut)
                if sum(len(each.passages) for each in group) >= _GROUP_PASSAGES:
                    await self._write(index, group)
                    group = []
            await self._write(index, group)

    async def _cut(self, member: Membership) -> _Cut | None:
        digest = member.file.content_hash
        try:
            passages = await to_thread.run_sync(self._again, member)
            chunking, fresh = self._cutter.chunking, True
        except (UnreadableFile, OSError) as error:
            digest = member.indexed_hash or digest
            reason = error.reason if isinstance(error, UnreadableFile) else "its bytes are gone"
            passages = await self._catalog.passages_of(self._store.id, member.file.id, digest)
            chunking, fresh = member.chunking, False
            if passages:
                reason += "; it keeps the passages that it had"
            self._failed.append((member.file.filename, reason))
            self._tell("failed", member, reason)
        if not passages:
            return None
        size = sum(len(passage.text.encode()) for passage in passages)
        rebuilt = RebuiltFile(member.file.id, digest, len(passages), size, chunking)
        return _Cut(member, digest, passages, rebuilt, fresh)

    def _again(self, member: Membership) -> tuple[Passage, ...]:
        data = self._blobs.get(member.file.content_hash)
        file = member.file
        return self._cutter.cut(file.id, file.content_hash, file.filename, data)

    async def _write(self, index: IndexWriter, group: Sequence[_Cut]) -> None:
        if not group:
            return
        files = [IndexedFile(cut.member.file.id, cut.digest, cut.passages) for cut in group]
        await index.write(files, self._embedded)
        staged = [passage for cut in group for passage in cut.passages]
        await self._catalog.stage(self._store.id, staged)
        for cut in group:
            self._files.append(cut.rebuilt)
            if cut.fresh:
                self._tell("replaced", cut.member)

    def _embedded(self, chunks: int) -> None:
        self._chunks += chunks
        done = len(self._files)
        self._on_event(IngestEvent("embedded", chunks=chunks, done=done, total=self._total))

    def _tell(self, kind: Outcome, member: Membership, detail: str = "") -> None:
        event = IngestEvent(
            kind,
            name=member.file.filename,
            detail=detail,
            done=len(self._files),
            total=self._total,
        )
        self._on_event(event)

"""The use case behind `groundwire ingest`: bring a store up to date with files on disk.

A file's identity in a store is its resolved absolute path: the same file under two names (a symbolic
link, two overlapping PATHs) is one file, two copies are two files, and a file that moved is a new one.
What readers see as its name is its path below the PATH that was given. A file whose bytes and chunking
did not change is skipped; one that changed keeps its id. When a new version cannot be read, the earlier
one stays searchable.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import CancelScope, to_thread

from retrieval.embed.base import Embedder
from retrieval.errors import IndexMissing
from retrieval.ingest.index import IndexWriter
from retrieval.ingest.load import supported
from retrieval.lexical import LexicalIndex, LexicalWriter, drop
from retrieval.search import VectorStore, connect
from server.catalog import Catalog, Store, StoreNotFound, is_store_id
from server.ingestion.lock import IngestError, ingest_lock
from server.ingestion.report import IngestEvent, IngestReport
from server.ingestion.run import IngestJob, OnEvent, Run
from server.ingestion.walk import walk


async def ingest_paths(
    job: IngestJob, embedder: Embedder, on_event: OnEvent = lambda _: None
) -> IngestReport:
    """Ingest files and folders into a store and say what became of each file.

    Files are acknowledged (by an event) when they are durable and searchable; whatever an interruption
    leaves behind is invisible and is done again by the next ingest. Raises CatalogError (the store's
    name is ambiguous, another embedder made it), RetrievalError (Chroma is away), IngestBusy, and
    IngestError for an overlap that the chunks have no room for.
    """
    started = time.perf_counter()
    _check_overlap(job, embedder)

    def waiting(pid: str) -> None:
        on_event(IngestEvent("waiting", detail=pid))

    lock = ingest_lock(job.data_dir / "ingest.lock", job.lock_timeout_seconds, waiting)
    async with lock, await Catalog.open(job.catalog_url) as catalog:
        store = await _store(catalog, job, embedder)
        found = await to_thread.run_sync(walk, job.paths, supported, [job.data_dir])
        root = job.data_dir / "lexical"
        await to_thread.run_sync(_drop_unusable, root, store.id)
        async with (
            connect(job.data_dir, job.chroma_url) as chroma,
            _open_writer(root, store.id) as lexical,
        ):
            index = IndexWriter(store.id, embedder, chroma.store, lexical)
            damaged = await _damaged(store, catalog, chroma.store, LexicalIndex(root))
            run = Run(job, store, catalog, index, embedder, on_event, reindex=damaged)
            await run.everything(found)
    return run.report(found.skipped, time.perf_counter() - started)


def _check_overlap(job: IngestJob, embedder: Embedder) -> None:
    most = min(job.chunk_tokens, embedder.max_tokens) // 2
    if not 0 <= job.chunk_overlap_tokens <= most:
        raise IngestError(
            f"chunk_overlap_tokens is {job.chunk_overlap_tokens}; it must be 0 to {most}, half of the "
            f"chunk (chunk_tokens is {job.chunk_tokens}, {embedder.name} reads {embedder.max_tokens})"
        )


async def _store(catalog: Catalog, job: IngestJob, embedder: Embedder) -> Store:
    try:
        store = await catalog.find_store(job.tenant, job.store)
    except StoreNotFound:
        # Someone who gives an id means a store that exists.
        if is_store_id(job.store):
            raise
        store = await catalog.create_store(job.tenant, job.store)
    return await catalog.bind_embedder(store.id, embedder.name, embedder.dimension)


@asynccontextmanager
async def _open_writer(root: Path, store_id: str) -> AsyncIterator[LexicalWriter]:
    writer = await to_thread.run_sync(LexicalWriter(root, store_id).__enter__)
    try:
        yield writer
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(writer.__exit__, None, None, None)


def _drop_unusable(root: Path, store_id: str) -> None:
    """Make way for a new keyword index where the old one cannot be read; `_damaged` then finds it empty."""
    try:
        LexicalIndex(root).count(store_id)
    except IndexMissing:
        drop(root, store_id)


async def _damaged(
    store: Store, catalog: Catalog, vectors: VectorStore, lexical: LexicalIndex
) -> bool:
    """Whether an index holds less than was acknowledged (its folder was deleted, say)."""
    expected = (await catalog.store_totals(store.id)).passages
    held = await to_thread.run_sync(lexical.count, store.id)
    return held < expected or await vectors.count(store.id) < expected

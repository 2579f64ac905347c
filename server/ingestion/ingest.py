"""The use case behind `groundwire ingest`: bring a store up to date with files on disk.

A file's identity in a store is its resolved absolute path: the same file under two names (a symbolic
link, two overlapping PATHs) is one file, two copies are two files, and a file that moved is a new one.
What readers see as its name is its path below the PATH that was given. A file whose bytes and chunking
did not change is skipped; one that changed keeps its id. When a new version cannot be read, the earlier
one stays searchable.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from anyio import to_thread

from retrieval.embed.base import Embedder
from retrieval.errors import IndexMissing
from retrieval.ingest.index import IndexWriter
from retrieval.ingest.load import supported
from retrieval.lexical import LexicalIndex, drop
from retrieval.search import VectorStore, connect
from server.catalog import Catalog, Store, StoreNotFound, is_store_id
from server.following import Following, open_writer
from server.ingestion.cut import Cutter
from server.ingestion.lock import IngestError, catalog_claim, ingest_lock
from server.ingestion.report import IngestEvent, IngestReport
from server.ingestion.run import IngestJob, OnEvent, Run
from server.ingestion.tally import Tally
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
    tally = Tally(on_event)
    cutter = cutter_of(job, embedder, tally)
    async with ingest_lock(
        job.data_dir / "ingest.lock", job.lock_timeout_seconds, partial(_waiting, on_event)
    ):
        with tally.kept_in(job.data_dir):
            return await ingest_alone(job, embedder, cutter, tally)


def cutter_of(job: IngestJob, embedder: Embedder, tally: Tally) -> Cutter:
    """What cuts the job's files. Raises IngestError for an overlap that the chunks have no room for."""
    return Cutter(
        embedder,
        chunk_tokens=job.chunk_tokens,
        overlap_tokens=job.chunk_overlap_tokens,
        max_file_bytes=job.max_file_bytes,
        steps=tally.steps,
    )


def _waiting(on_event: OnEvent, holder: str) -> None:
    on_event(IngestEvent("waiting", detail=holder))


async def ingest_alone(
    job: IngestJob, embedder: Embedder, cutter: Cutter, tally: Tally
) -> IngestReport:
    """As `ingest_paths`, for a caller that holds a lock on the data directory and keeps the tally."""
    started = time.perf_counter()
    async with (
        await Catalog.open(job.catalog_url) as catalog,
        catalog_claim(catalog, job.lock_timeout_seconds, partial(_waiting, tally.hear)),
    ):
        store = await _store(catalog, job, embedder)
        found = await to_thread.run_sync(walk, job.paths, supported, [job.data_dir, *job.not_below])
        root = job.data_dir / "lexical"
        await to_thread.run_sync(_drop_unusable, root, store.index_name)
        if catalog.shared:
            await Following(catalog, root).follow(store)
        async with (
            connect(job.data_dir, job.chroma) as chroma,
            open_writer(root, store.index_name) as lexical,
        ):
            index = IndexWriter(store.index_name, embedder, chroma.store, lexical, tally.steps)
            damaged = await _damaged(store, catalog, chroma.store, LexicalIndex(root))
            run = Run(job, store, catalog, index, cutter, tally.hear, reindex=damaged)
            await run.everything(found)
    return run.report(found.skipped, time.perf_counter() - started)


async def _store(catalog: Catalog, job: IngestJob, embedder: Embedder) -> Store:
    try:
        store = await catalog.find_store(job.tenant, job.store)
    except StoreNotFound:
        # Someone who gives an id means a store that exists.
        if is_store_id(job.store):
            raise
        store = await catalog.create_store(job.tenant, job.store)
    if store.adopted is not None:
        raise IngestError(
            f"the store {store.name!r} is read-only: it was adopted from {store.adopted.collection!r} at "
            f"{store.adopted.chroma_url}. Write there, then `groundwire adopt` again"
        )
    return await catalog.bind_embedder(store.id, embedder.name, embedder.dimension)


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
    held = await to_thread.run_sync(lexical.count, store.index_name)
    return held < expected or await vectors.count(store.index_name) < expected

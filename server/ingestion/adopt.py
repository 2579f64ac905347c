"""The use case behind `groundwire adopt`: a collection that something else filled becomes a read-only store.

Its vectors stay where they are, and searches ask for them there. Its texts are read once, into a keyword index
of our own, which is also what citations lead to. Adopting again reads them anew, into the index's next
generation; until that is complete searches use the one before.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio import to_thread

from retrieval.embed.base import Embedder
from retrieval.lexical import LexicalWriter, drop
from retrieval.search import ChromaCollections
from retrieval.search.adopted import (
    CollectionFacts,
    Fields,
    Row,
    agreement,
    check_dimension,
    passage_of,
    text_of,
)
from retrieval.types import Passage
from server.adopted import endpoint_of, fields_of
from server.catalog import (
    LOCAL_TENANT,
    Adopted,
    Catalog,
    Store,
    StoreNotFound,
    index_name,
    is_store_id,
)
from server.embedding import found_anywhere
from server.following import open_writer
from server.ingestion.lock import IngestError, catalog_claim, ingest_lock
from server.ingestion.report import AdoptReport

#: The embedder of that name and query prefix; blocks, raises EmbedderError.
OpenEmbedder = Callable[[str, str | None], Embedder]

#: Rows whose texts are embedded, to see whether the embedder is the one that filled the collection.
PROBE_ROWS = 8
#: The median cosine of these to the stored vectors that is no coincidence. A model that differs in precision
#: or cuts texts elsewhere stays above .9; another model of the same size is near 0.
LEAST_AGREEMENT = 0.3


@dataclass(frozen=True, slots=True)
class AdoptJob:
    """What to adopt under which name: `given` are fields of Adopted.

    What is not given is as it was when the store was adopted before, else Adopted's default.
    """

    store: str
    given: Mapping[str, Any]
    data_dir: Path
    catalog_url: str
    tenant: str = LOCAL_TENANT
    lock_timeout_seconds: float = 600.0
    grace_seconds: float = 5.0


async def adopt_collection(
    job: AdoptJob, open_embedder: OpenEmbedder, tell: Callable[[str], None] = lambda _: None
) -> AdoptReport:
    """Make the collection a store, or read it again where it is one.

    Raises CatalogError, RetrievalError (StoreUnavailable, EmbedderError, DimensionMismatch with both numbers),
    IngestBusy, and IngestError: a name that is in use, no text, or vectors that another embedder made.
    """

    def waiting(pid: str) -> None:
        tell(f"waiting for another ingest (process {pid}) to finish")

    lock = ingest_lock(job.data_dir / "ingest.lock", job.lock_timeout_seconds, waiting)
    async with (
        lock,
        await Catalog.open(job.catalog_url) as catalog,
        catalog_claim(catalog, job.lock_timeout_seconds, waiting),
    ):
        before = await _earlier(catalog, job)
        adopted = _wanted(job, before.adopted if before else None)
        embedder = await to_thread.run_sync(open_embedder, adopted.embedder, adopted.query_prefix)
        async with _reader(adopted) as reader:
            facts = await reader.facts(adopted.collection)
            check_dimension(facts, embedder.name, embedder.dimension)
            alike = await to_thread.run_sync(_check, facts, fields_of(adopted), embedder)
            store = before or await catalog.create_store(job.tenant, job.store)
            return await _Adoption(job, store, catalog, reader, tell).run(
                replace(adopted, rows=facts.rows), embedder, facts, alike
            )


async def _earlier(catalog: Catalog, job: AdoptJob) -> Store | None:
    """The store of that name, if there is one that may be adopted into. Raises IngestError."""
    try:
        store = await catalog.find_store(job.tenant, job.store)
    except StoreNotFound:
        if is_store_id(job.store):
            raise
        return None
    if store.adopted is None and store.embedder is not None:
        raise IngestError(
            f"the store {store.name!r} holds files of its own; adopt under another name with --store"
        )
    return store


def _wanted(job: AdoptJob, before: Adopted | None) -> Adopted:
    given = dict(job.given)
    if given.get("embedder"):
        given["embedder"] = found_anywhere(given["embedder"])
    if before is not None:
        return replace(before, **given)
    for field, flag in (("chroma_url", "--chroma"), ("embedder", "--embedder")):
        if not given.get(field):
            raise IngestError(f"{flag} is missing: a first adoption needs it")
    return Adopted(**given)


@asynccontextmanager
async def _reader(adopted: Adopted) -> AsyncIterator[ChromaCollections]:
    try:
        reader = ChromaCollections(endpoint_of(adopted))
    except ValueError as error:
        raise IngestError(str(error)) from error
    try:
        yield reader
    finally:
        await reader.close()


def _check(facts: CollectionFacts, fields: Fields, embedder: Embedder) -> float:
    """How like the embedder's own the vectors are. Blocks. Raises IngestError."""
    probe = replace(facts, sample=facts.sample[:PROBE_ROWS])
    texts = [text_of(row, fields) for row in probe.sample]
    present = [text for text in texts if text is not None]
    if not present:
        where = (
            "Chroma's document" if fields.text is None else f"the metadata field {fields.text!r}"
        )
        keys = sorted({key for row in probe.sample for key in row.metadata})
        raise IngestError(
            f"the first rows have no text in {where}; --text-field names the metadata field that has it "
            f"(there are: {', '.join(keys) or 'none'})"
        )
    alike = agreement(probe, texts, np.asarray(embedder.embed_passages(present)))
    if alike < LEAST_AGREEMENT:
        raise IngestError(
            f"the collection's vectors are not those that {embedder.name!r} makes of its texts: their cosine "
            f"is {alike:.2f} in the median of {len(present)} rows. Name the embedder that filled the "
            "collection, and the field that it embedded (--text-field)"
        )
    return alike


class _Adoption:
    """One reading of a collection into a store's next generation."""

    def __init__(
        self,
        job: AdoptJob,
        store: Store,
        catalog: Catalog,
        reader: ChromaCollections,
        tell: Callable[[str], None],
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._tell = tell
        self._root = job.data_dir / "lexical"
        self._passages: set[str] = set()
        self._files: set[str] = set()
        self._read = 0

    async def run(
        self, adopted: Adopted, embedder: Embedder, facts: CollectionFacts, alike: float
    ) -> AdoptReport:
        started = time.perf_counter()
        store, generation = self._store, self._store.generation + 1
        # What an earlier attempt left, before or after its switch.
        await self._drop(generation)
        await self._drop(store.generation - 1)
        async with open_writer(self._root, index_name(store.id, generation)) as lexical:
            async for page in self._reader.pages(adopted.collection):
                await to_thread.run_sync(self._add, lexical, adopted, page)
                self._tell(f"{self._read} of {adopted.rows} rows read")
            await to_thread.run_sync(lexical.commit)
        adopted = replace(
            adopted, rows=self._read, passages=len(self._passages), files=len(self._files)
        )
        await self._catalog.switch_adopted(
            store.id, generation, embedder.name, embedder.dimension, adopted
        )
        if store.adopted is not None:
            await anyio.sleep(self._job.grace_seconds)
        await self._drop(store.generation)
        return AdoptReport(
            store_id=store.id,
            store_name=store.name,
            collection=adopted.collection,
            embedder=embedder.name,
            dimension=embedder.dimension,
            space=facts.space,
            agreement=alike,
            rows=adopted.rows,
            passages=adopted.passages,
            files=adopted.files,
            seconds=time.perf_counter() - started,
        )

    def _add(self, lexical: LexicalWriter, adopted: Adopted, page: list[Row]) -> None:
        self._read += len(page)
        fields = fields_of(adopted)
        found = [passage_of(adopted.collection, row, fields) for row in page]
        # Rows that move while they are read come twice.
        fresh: dict[str, Passage] = {
            one.id: one for one in found if one is not None and one.id not in self._passages
        }
        lexical.add(list(fresh.values()))
        self._passages.update(fresh)
        self._files.update(one.file_id for one in fresh.values())

    async def _drop(self, generation: int) -> None:
        if generation >= 0:
            await to_thread.run_sync(drop, self._root, index_name(self._store.id, generation))

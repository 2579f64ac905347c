"""One ingest at work: what is new, changed, gone or unfinished, and what became of each file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from retrieval.errors import UnreadableFile
from retrieval.ingest.index import IndexedFile, IndexWriter
from retrieval.search import ChromaEndpoint
from server.catalog import (
    LOCAL_TENANT,
    BlobStore,
    Catalog,
    FileVersion,
    Membership,
    Store,
    content_hash,
    new_file_id,
)
from server.ingestion.cut import Cutter
from server.ingestion.report import IngestEvent, IngestReport, Outcome
from server.ingestion.walk import Source, Walk

#: Passages that share one commit, so that small files do not each pay for one.
_GROUP_PASSAGES = 64

OnEvent = Callable[[IngestEvent], None]


@dataclass(frozen=True, slots=True)
class IngestJob:
    """What to ingest, and where to. `store` is an id or a name; a name that is new makes a store.

    `chunk_tokens` is capped at what the embedder reads; `lock_timeout_seconds` is how long another
    ingest is waited for; `not_below` are folders without documents, as `data_dir` is.
    """

    paths: tuple[Path, ...]
    store: str
    data_dir: Path
    catalog_url: str
    chroma: ChromaEndpoint | str | None = None
    tenant: str = LOCAL_TENANT
    prune: bool = False
    chunk_tokens: int = 256
    chunk_overlap_tokens: int = 0
    max_file_bytes: int = 100 * 2**20
    lock_timeout_seconds: float = 600.0
    not_below: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pending:
    """A version that waits for its group to be indexed; `known` is what the store has of the file."""

    version: FileVersion
    known: Membership | None

    @property
    def outcome(self) -> Outcome:
        shown = self.known is not None and self.known.indexed_hash is not None
        return "replaced" if shown else "added"

    @property
    def indexed(self) -> IndexedFile:
        version, known = self.version, self.known
        same = known is not None and known.indexed_hash == version.content_hash
        return IndexedFile(
            file_id=version.file_id,
            content_hash=version.content_hash,
            passages=version.passages,
            replaces=known is not None,
            replaced_chunks=known.chunks if known is not None and same else 0,
        )


class Run:
    """Brings one store up to date with what `walk` found; `reindex` trusts nothing that was indexed."""

    def __init__(
        self,
        job: IngestJob,
        store: Store,
        catalog: Catalog,
        index: IndexWriter,
        cutter: Cutter,
        on_event: OnEvent,
        *,
        reindex: bool,
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._index = index
        self._cutter = cutter
        self._on_event = on_event
        self._reindex = reindex
        self._blobs = BlobStore(job.data_dir.resolve() / "blobs")
        self._chunking = cutter.chunking
        self._group: list[_Pending] = []
        self._counts: Counter[Outcome] = Counter()
        self._failed: list[tuple[str, str]] = []
        self._chunks = 0
        self._done = 0
        self._total = 0

    async def everything(self, found: Walk) -> None:
        """Remove what is gone (with `prune`), index what is new or changed, finish what was interrupted."""
        members = await self._catalog.memberships(self._store.id)
        known = {member.source: member for member in members if member.source is not None}
        missing = self._missing(found, known)
        gone = await to_thread.run_sync(self._gone, found, known)
        seen = {source.key for source in found.sources} | {member.source for member in gone}
        unfinished = [
            member
            for key, member in known.items()
            if (member.status == "in_progress" or self._reindex) and key not in seen
        ]
        problems = [*found.problems, *missing]
        self._total = len(problems) + len(gone) + len(found.sources) + len(unfinished)
        self._on_event(IngestEvent("found", total=self._total))
        for name, reason in problems:
            self._finish("failed", name, reason)
        await self._remove(gone)
        for source in found.sources:
            await self._take(source, known.get(source.key))
        for member in unfinished:
            await self._repeat(member)
        await self._flush()

    def report(self, skipped: int, seconds: float) -> IngestReport:
        return IngestReport(
            store_id=self._store.id,
            store_name=self._store.name,
            added=self._counts["added"],
            replaced=self._counts["replaced"],
            unchanged=self._counts["unchanged"],
            removed=self._counts["removed"],
            skipped=skipped,
            failed=tuple(self._failed),
            chunks=self._chunks,
            seconds=seconds,
        )

    def _missing(self, found: Walk, known: Mapping[str, Membership]) -> list[tuple[str, str]]:
        """PATHs that do not exist, but for those whose files are about to be pruned."""
        return [
            (root, "no such file or folder")
            for root in found.missing
            if not (self._job.prune and any(_below(key, root) for key in known))
        ]

    def _gone(self, found: Walk, known: Mapping[str, Membership]) -> list[Membership]:
        if not self._job.prune:
            return []
        seen = {source.key for source in found.sources}
        return [
            member
            for key, member in known.items()
            if key not in seen and any(_below(key, root) for root in found.roots) and _absent(key)
        ]

    async def _remove(self, members: Sequence[Membership]) -> None:
        if not members:
            return
        ids = [member.file.id for member in members]
        await self._catalog.reopen(self._store.id, ids)
        await self._index.remove(ids)
        await self._catalog.remove(self._store.id, ids)
        for member in members:
            self._finish("removed", member.file.filename)

    async def _take(self, source: Source, known: Membership | None) -> None:
        def read() -> bytes:
            limit = self._job.max_file_bytes
            if source.path.stat().st_size > limit:
                raise UnreadableFile(source.name, f"larger than {limit:,} bytes (max_file_bytes)")
            return source.path.read_bytes()

        await self._prepare(read, source.name, source.key, known)

    async def _repeat(self, member: Membership) -> None:
        """Index what an interruption or a damaged index left, from the kept bytes: its path was not given."""

        def read() -> bytes:
            return self._blobs.get(member.file.content_hash)

        await self._prepare(read, member.file.filename, member.source, member)

    async def _prepare(
        self, read: Callable[[], bytes], name: str, key: str | None, known: Membership | None
    ) -> None:
        try:
            version = await to_thread.run_sync(self._version, read, name, key, known)
        except UnreadableFile as error:
            self._unreadable(name, error.reason, known)
        except OSError as error:
            self._unreadable(name, error.strerror or str(error), known)
        else:
            if version is None:
                self._finish("unchanged", name)
                return
            self._group.append(_Pending(version, known))
            if sum(len(each.version.passages) for each in self._group) >= _GROUP_PASSAGES:
                await self._flush()

    def _version(
        self, read: Callable[[], bytes], name: str, key: str | None, known: Membership | None
    ) -> FileVersion | None:
        """The file's content, kept and cut; None when the store has just that. Blocks.

        Raises UnreadableFile and OSError.
        """
        data = read()
        digest = content_hash(data)
        if known is not None and self._up_to_date(known, digest):
            return None
        file_id = new_file_id() if known is None else known.file.id
        passages = self._cutter.cut(file_id, digest, name, data)
        self._blobs.put(data)
        return FileVersion(file_id, name, len(data), digest, key, passages, self._chunking)

    def _up_to_date(self, known: Membership, digest: str) -> bool:
        return (
            not self._reindex
            and known.status == "completed"
            and known.indexed_hash == digest
            and known.chunking == self._chunking
        )

    async def _flush(self) -> None:
        group, self._group = self._group, []
        if not group:
            return
        versions = [pending.version for pending in group]
        await self._catalog.begin(self._store.id, self._job.tenant, versions)
        await self._index.write([pending.indexed for pending in group], self._embedded)
        await self._catalog.complete(self._store.id, versions)
        for pending in group:
            self._finish(pending.outcome, pending.version.filename)

    def _embedded(self, chunks: int) -> None:
        self._chunks += chunks
        self._on_event(IngestEvent("embedded", chunks=chunks, done=self._done, total=self._total))

    def _unreadable(self, name: str, reason: str, known: Membership | None) -> None:
        if known is not None and known.indexed_hash is not None:
            reason += "; what was indexed before stays searchable"
        self._finish("failed", name, reason)

    def _finish(self, outcome: Outcome, name: str, detail: str = "") -> None:
        self._done += 1
        self._counts[outcome] += 1
        if outcome == "failed":
            self._failed.append((name, detail))
        self._on_event(
            IngestEvent(outcome, name=name, detail=detail, done=self._done, total=self._total)
        )


def _below(key: str, root: str) -> bool:
    return key == root or key.startswith(root.rstrip("/") + "/")


def _absent(path: str) -> bool:
    """Whether nothing is there; a folder that cannot be looked into does not say so."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False

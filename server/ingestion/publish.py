"""The use case behind `groundwire ingest --publish`: the last version, what changed since, the next version."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval.embed.base import Embedder
from server.auth import signing_key
from server.catalog import Catalog, sqlite_url
from server.ingestion.cut import Cutter
from server.ingestion.ingest import cutter_of, ingest_alone
from server.ingestion.report import IngestReport
from server.ingestion.run import IngestJob, OnEvent
from server.ingestion.tally import Tally
from server.published import BLOBS, publish, take, writer_lock


@dataclass(frozen=True, slots=True)
class Publication:
    """What the ingest did, and the version that is current now; not `new` where nothing had changed."""

    report: IngestReport
    version: int
    new: bool


async def publish_paths(
    job: IngestJob, embedder: Embedder, published: Path, on_event: OnEvent = lambda _: None
) -> Publication:
    """Ingest as `ingest_paths` into a copy of the current version, and publish the copy as the next one.

    The copy is made in `job.data_dir` and removed again; the job's own catalog and Chroma are not used. Files that
    could not be read do not keep the others from being published. Raises as `ingest_paths`, and InUse,
    PublishedError and OSError; nothing is published then. Cancelled at the very end, it may have published.
    The run is counted beside the versions: one that publishes nothing is in none of them.

    The copies are made in this thread, and hold up the event loop: a task's cancellation, as by Ctrl-C, would not
    wait for another thread, and the lock and the copy would go from under it.
    """
    tally = Tally(on_event)
    cutter = cutter_of(job, embedder, tally)
    with writer_lock(published):
        work = _workplace(job.data_dir, published)
        try:
            with tally.kept_in(published):
                return await _publish(job, embedder, cutter, published, work, tally)
        finally:
            shutil.rmtree(work, ignore_errors=True)


async def _publish(
    job: IngestJob,
    embedder: Embedder,
    cutter: Cutter,
    published: Path,
    work: Path,
    tally: Tally,
) -> Publication:
    version = _start_from(published, work)
    inside = replace(
        job,
        data_dir=work,
        catalog_url=sqlite_url(work / "catalog.db"),
        chroma=None,
        not_below=(published, job.data_dir),
    )
    report = await ingest_alone(inside, embedder, cutter, tally)
    if version is not None and not report.changed:
        return Publication(report, version, new=False)
    async with await Catalog.open(inside.catalog_url) as catalog:
        _remove_blobs(work, keep=await catalog.content_hashes())
    # Published with the rest: a citation's link must be valid on every server.
    signing_key(work / "secret")
    return Publication(report, publish(work, published), new=True)


def _workplace(data_dir: Path, published: Path) -> Path:
    """Named by the published directory, whose lock we hold: nobody else works in it."""
    name = hashlib.sha256(str(published.resolve()).encode()).hexdigest()[:8]
    return data_dir.resolve() / f"publishing-{name}"


def _start_from(published: Path, work: Path) -> int | None:
    """Make `work` a copy of the current version, or an empty folder."""
    shutil.rmtree(work, ignore_errors=True)
    version = take(published, work)
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    return version


def _remove_blobs(work: Path, keep: set[str]) -> None:
    """Remove the bytes of files that are gone or have changed. Only here: nobody else puts bytes into `work`."""
    for blob in (work / BLOBS).glob("*/*"):
        if blob.name not in keep:
            blob.unlink()

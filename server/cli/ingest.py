"""`groundwire ingest PATH… --store NAME`: bring a store up to date with files on disk.

Exit status: 0 when every file is in the store, 1 when a file could not be read (the others are in) or
the ingest could not run, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.background import step_back
from server.cli.local import LOCAL_SETTINGS, clean, open_embedder

if TYPE_CHECKING:
    from server.ingestion import IngestEvent, IngestReport, Publication
    from server.ingestion.run import OnEvent
    from server.settings import Settings


SETTINGS = (*LOCAL_SETTINGS, "chunk_tokens", "chunk_overlap_tokens", "max_file_bytes")


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "ingest",
        help="read files into a store",
        description="Read files and folders into a store. Files that did not change are skipped and "
        "changed ones are replaced. Works whether the server runs or not.",
        epilog="Exit status: 0 when all is well, 1 when a file could not be read (it is named, and "
        "the others are in the store) or the ingest could not run.",
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="a file, or a folder to walk"
    )
    parser.add_argument(
        "--store", metavar="NAME", help="the store's name or id; made when new (default_store)"
    )
    parser.add_argument(
        "--prune", action="store_true", help="remove files below PATH that are gone from disk"
    )
    parser.add_argument(
        "--publish",
        metavar="DIR",
        type=Path,
        help="work on a copy of DIR's current version and publish the next one there (published_dir)",
    )
    parser.add_argument(
        "--tenant", metavar="NAME", help="whose store (local): that of a key `NAME:…` in api_keys"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but which files failed")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ingest; progress goes to stderr, the report to stdout."""
    from retrieval.errors import RetrievalError
    from server.bundled import BundledModelError
    from server.catalog import CatalogError
    from server.ingestion import IngestError
    from server.published import PublishedError, current

    published = args.publish or settings.published_dir
    before: int | None = None
    step_back()
    try:
        before = current(published) if published else None
        report, publication = asyncio.run(_ingest(args, settings, published))
    except (
        BundledModelError,
        CatalogError,
        RetrievalError,
        IngestError,
        PublishedError,
        OSError,
    ) as error:
        print(f"groundwire ingest: {clean(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"groundwire ingest: stopped; {_left(published, before)}", file=sys.stderr)
        return 130
    if args.json:
        version = {} if publication is None else {"published_version": publication.version}
        print(json.dumps(asdict(report) | version))
    elif not args.quiet:
        _print_report(report)
        if publication is not None:
            news = "published as" if publication.new else "nothing changed since"
            print(f"{news} v-{publication.version}")
    return 0 if report.ok else 1


def _left(published: Path | None, before: int | None) -> str:
    """What a stopped ingest leaves. Ctrl-C may come behind the switch: only `CURRENT` knows."""
    from server.published import PublishedError, current

    if published is None:
        return "the same command goes on from here"
    try:
        now = current(published)
    except PublishedError as error:
        return clean(str(error))
    if now != before:
        return f"v-{now} was published"
    return "nothing was published" if now is None else f"nothing was published, v-{now} is current"


async def _ingest(
    args: argparse.Namespace, settings: Settings, published: Path | None
) -> tuple[IngestReport, Publication | None]:
    from server.catalog import LOCAL_TENANT
    from server.ingestion import IngestError, IngestJob, ingest_paths, publish_paths

    store = args.store or settings.default_store
    if not store:
        raise IngestError("which store? Name it with --store, or set default_store")
    job = IngestJob(
        paths=tuple(args.paths),
        store=store,
        data_dir=settings.data_dir,
        catalog_url=settings.resolved_catalog_url,
        chroma=settings.chroma,
        tenant=args.tenant or LOCAL_TENANT,
        prune=args.prune,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap_tokens=settings.chunk_overlap_tokens,
        max_file_bytes=settings.max_file_bytes,
    )
    embedder = await open_embedder(settings, quiet=args.quiet)
    with listener(quiet=args.quiet) as on_event:
        if published is None:
            return await ingest_paths(job, embedder, on_event), None
        publication = await publish_paths(job, embedder, published, on_event)
        return publication.report, publication


@contextmanager
def listener(*, quiet: bool) -> Iterator[OnEvent]:
    """What shows an ingest's steps on stderr: a bar on a terminal, else lines, or failures alone."""
    if quiet:
        yield _print_failure
    elif sys.stderr.isatty():
        with _progress_bar() as on_event:
            yield on_event
    else:
        yield _print_line


def _print_failure(event: IngestEvent) -> None:
    if event.kind == "failed":
        print(_failure(event), file=sys.stderr, flush=True)


def _print_line(event: IngestEvent) -> None:
    """One line for each file: what a log or a pipe can keep. Unchanged files are only counted."""
    if event.kind == "waiting":
        line = _waiting(event)
    elif event.kind == "found":
        line = f"files to look at: {event.total}"
    elif event.kind == "failed":
        line = _failure(event)
    elif event.kind in ("added", "replaced", "removed"):
        line = f"{event.kind} {clean(event.name)} ({event.done}/{event.total})"
    else:
        return
    print(line, file=sys.stderr, flush=True)


def _waiting(event: IngestEvent) -> str:
    return f"waiting for another ingest (process {event.detail}) to finish"


def _failure(event: IngestEvent) -> str:
    return f"failed {clean(event.name)}: {clean(event.detail)}"


@contextmanager
def _progress_bar() -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[chunks]} chunks"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("ingesting", total=None, chunks=0)
        chunks = 0

        def on_event(event: IngestEvent) -> None:
            nonlocal chunks
            chunks += event.chunks
            if event.kind == "waiting":
                progress.console.print(Text(_waiting(event)))
            elif event.kind == "failed":
                progress.console.print(Text(_failure(event), style="red"))
            total = event.total or None
            progress.update(task, total=total, completed=event.done, chunks=chunks)

        yield on_event


def _print_report(report: IngestReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counted = {
        "added": report.added,
        "replaced": report.replaced,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "failed": len(report.failed),
        "of other types": report.skipped,
        "chunks embedded": report.chunks,
    }
    console = Console()
    console.print(Text(f"{clean(report.store_name)} ({report.store_id})"))
    table = Table("files", "")
    for name, count in counted.items():
        table.add_row(name, str(count), end_section=name == "of other types")
    table.add_row("seconds", f"{report.seconds:.1f}")
    table.columns[1].justify = "right"
    console.print(table)

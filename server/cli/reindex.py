"""`groundwire reindex STORE…`: build a store's vectors and keyword index again from the kept bytes.

Exit status: 0 when all was rebuilt, 1 when a file could not be read again or the reindex could not run,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from server.cli import ingest
from server.cli.background import step_back
from server.cli.local import clean, open_embedder

if TYPE_CHECKING:
    from server.ingestion import ReindexReport
    from server.settings import Settings


SETTINGS = ingest.SETTINGS


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "reindex",
        help="build a store's indexes again from the kept bytes",
        description="Build vectors and keyword index again, with the embedder and chunking that are set "
        "now. Searches use the old index until the new one is complete. Works whether the server runs "
        "or not.",
        epilog="Exit status: 0 when all is well, 1 when a file could not be read again (it is named, and "
        "keeps the passages that it had) or the reindex could not run.",
    )
    parser.add_argument("stores", metavar="STORE", nargs="*", help="a store's name or id")
    parser.add_argument("--all", action="store_true", help="every store that has bytes here")
    parser.add_argument("--tenant", metavar="NAME", help="whose stores (local)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but which files failed")
    parser.add_argument("--json", action="store_true", help="print the reports as one JSON list")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Reindex; progress goes to stderr, the reports to stdout."""
    from retrieval.errors import RetrievalError
    from server.bundled import BundledModelError
    from server.catalog import CatalogError
    from server.ingestion import IngestError

    if bool(args.stores) == args.all:
        print("groundwire reindex: name the stores, or say --all", file=sys.stderr)
        return 2
    if settings.published_dir is not None:
        print(
            f"groundwire reindex: the index is published in {settings.published_dir}, and versions never change: "
            "`groundwire ingest` makes the next one, and builds again what is damaged or cut otherwise",
            file=sys.stderr,
        )
        return 1
    step_back()
    try:
        reports = asyncio.run(_reindex(args, settings))
    except (BundledModelError, CatalogError, RetrievalError, IngestError) as error:
        print(f"groundwire reindex: {clean(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("groundwire reindex: stopped; the store is as it was", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps([asdict(report) for report in reports]))
    elif not args.quiet:
        for report in reports:
            print(
                f"{clean(report.store_name)} ({report.store_id}): {report.files} files, "
                f"{report.chunks} chunks by {clean(report.embedder)} in {report.seconds:.1f} s"
            )
    return 0 if all(report.ok for report in reports) else 1


async def _reindex(args: argparse.Namespace, settings: Settings) -> list[ReindexReport]:
    from server.catalog import LOCAL_TENANT
    from server.ingestion import ReindexJob, reindex_stores

    job = ReindexJob(
        stores=tuple(args.stores),
        data_dir=settings.data_dir,
        catalog_url=settings.resolved_catalog_url,
        chroma=settings.chroma,
        tenant=args.tenant or LOCAL_TENANT,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap_tokens=settings.chunk_overlap_tokens,
        max_file_bytes=settings.max_file_bytes,
    )
    embedder = await open_embedder(settings, quiet=args.quiet)
    with ingest.listener(quiet=args.quiet) as on_event:
        return await reindex_stores(job, embedder, on_event)

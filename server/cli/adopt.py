"""`groundwire adopt COLLECTION --chroma URL --embedder NAME`: serve what something else put into Chroma.

Exit status: 0 when the store is ready, 1 when the collection cannot be adopted, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from server.cli.background import step_back
from server.cli.local import clean

if TYPE_CHECKING:
    from retrieval.embed.base import Embedder
    from server.ingestion import AdoptReport
    from server.settings import Settings

SETTINGS = ("data_dir", "models_dir", "catalog_url")

#: Below this median cosine the vectors are close to the embedder's, and not its own.
SURE_AGREEMENT = 0.9

#: Flag -> the field of Adopted, what its value is called, and help.
_FIELDS = {
    "--chroma": ("chroma_url", "URL", "the Chroma server, http[s]://host[:port]"),
    "--embedder": ("embedder", "NAME", "the model that made its vectors: a name or a folder"),
    "--query-prefix": (
        "query_prefix",
        "TEXT",
        "put before queries (what the model was trained with)",
    ),
    "--text-field": ("text_field", "KEY", "metadata key of a row's text (Chroma's document)"),
    "--title-field": ("title_field", "KEY", "metadata key of its title (title)"),
    "--source-field": ("source_field", "KEY", "metadata key of the file it is from (source)"),
    "--page-field": ("page_field", "KEY", "metadata key of its page (page)"),
    "--headers-env": (
        "headers_env",
        "VARIABLE",
        "environment variable with headers for Chroma, `Name: value`, one a line; the server needs it too",
    ),
    "--chroma-tenant": ("chroma_tenant", "NAME", "Chroma's tenant (default_tenant)"),
    "--chroma-database": ("chroma_database", "NAME", "Chroma's database (default_database)"),
}


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "adopt",
        help="serve a Chroma collection that something else filled",
        description="Make a Chroma collection a read-only store. Its vectors stay where they are; its texts "
        "are read into a keyword index. The same command reads them again; what is not named is then as "
        "before. Works whether the server runs or not.",
        epilog="Exit status: 0 when the store is ready, 1 when the collection cannot be adopted.",
    )
    parser.add_argument("collection", metavar="COLLECTION", help="the collection's name")
    parser.add_argument(
        "--store", metavar="NAME", help="the store's name or id (the collection's name)"
    )
    for flag, (field, metavar, text) in _FIELDS.items():
        parser.add_argument(flag, dest=field, metavar=metavar, help=text)
    parser.add_argument("--tenant", metavar="NAME", help="whose store (local)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but what is wrong")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Adopt; progress goes to stderr, the report to stdout."""
    from retrieval.errors import RetrievalError
    from server.bundled import BundledModelError
    from server.catalog import CatalogError
    from server.ingestion import IngestError

    step_back()
    try:
        report = asyncio.run(_adopt(args, settings))
    except (BundledModelError, CatalogError, RetrievalError, IngestError) as error:
        print(f"groundwire adopt: {clean(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("groundwire adopt: stopped; the store is as it was", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(asdict(report)))
    elif not args.quiet:
        print(
            f"{clean(report.store_name)} ({report.store_id}): {report.passages} passages of {report.files} "
            f"sources, {report.dimension} dimensions by {clean(report.embedder)}, read in {report.seconds:.1f} s"
        )
    if report.agreement < SURE_AGREEMENT or report.passages < report.rows:
        _doubts(report)
    return 0


def _doubts(report: AdoptReport) -> None:
    """What works, and may still not be what was meant."""
    if report.agreement < SURE_AGREEMENT:
        print(
            f"groundwire adopt: the vectors are not quite what {clean(report.embedder)!r} makes of the texts "
            f"(median cosine {report.agreement:.2f}): another version, or a text with something around it?",
            file=sys.stderr,
        )
    if report.passages < report.rows:
        print(
            f"groundwire adopt: {report.rows - report.passages} of {report.rows} rows have no text, and "
            "cannot be found",
            file=sys.stderr,
        )


async def _adopt(args: argparse.Namespace, settings: Settings) -> AdoptReport:
    from server.catalog import LOCAL_TENANT
    from server.embedding import open_other
    from server.ingestion import AdoptJob, adopt_collection

    given = {field: getattr(args, field) for field, _, _ in _FIELDS.values()}
    job = AdoptJob(
        store=args.store or args.collection,
        given={"collection": args.collection}
        | {field: value for field, value in given.items() if value is not None},
        data_dir=settings.data_dir,
        catalog_url=settings.resolved_catalog_url,
        tenant=args.tenant or LOCAL_TENANT,
    )

    def tell(line: str) -> None:
        if not args.quiet:
            print(clean(line), file=sys.stderr, flush=True)

    def open_embedder(model: str, query_prefix: str | None) -> Embedder:
        return open_other(settings, model, query_prefix, tell)

    return await adopt_collection(job, open_embedder, tell)

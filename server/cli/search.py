"""`groundwire search "question" --store NAME`: what retrieval finds, with its scores by stage.

Exit status: 0 when something was found, 1 when nothing was or the search could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from server.cli.local import READING_SETTINGS, clean, open_searchable, readable

if TYPE_CHECKING:
    from retrieval.trace import Trace
    from retrieval.types import Candidate, Retrieval
    from server.catalog import Store
    from server.settings import Settings

SETTINGS = READING_SETTINGS

_SNIPPET_CHARS = 240


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "search",
        help="ask a store what it finds, without a model",
        description="Search a store and print the hits with their scores by stage: the vectors' "
        "cosine, the keywords' BM25, and the fused score that orders them.",
        epilog="Exit status: 0 when something was found, 1 when nothing was.",
    )
    parser.add_argument("question", help="what to look for")
    parser.add_argument("--store", metavar="NAME", help="the store's name or id (default_store)")
    parser.add_argument("--top-k", metavar="N", type=int, help="how many hits (top_k)")
    parser.add_argument("--json", action="store_true", help="print the hits as JSON")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Search and print the hits to stdout."""
    from retrieval.errors import RetrievalError
    from retrieval.trace import Trace
    from server.bundled import BundledModelError
    from server.catalog import CatalogError
    from server.published import PublishedError

    ref: str = args.store or settings.default_store or ""
    top_k = settings.top_k if args.top_k is None else args.top_k
    if problem := _problem(args.question, ref, top_k):
        print(f"groundwire search: {problem}", file=sys.stderr)
        return 1
    trace = Trace()
    try:
        with readable(settings) as here:
            store, retrieval = asyncio.run(_search(args.question, ref, top_k, here, trace))
    except (BundledModelError, CatalogError, PublishedError, RetrievalError) as error:
        print(f"groundwire search: {clean(str(error))}", file=sys.stderr)
        return 1
    hits = retrieval.candidates[:top_k]
    if args.json:
        print(json.dumps(_as_json(store, retrieval, hits, trace)))
    else:
        _print(store, hits, trace)
    return 0 if hits else 1


def _problem(question: str, ref: str, top_k: int) -> str | None:
    if not ref:
        return "which store? Name it with --store, or set default_store"
    if not question.strip():
        return "the question is empty"
    if top_k < 1:
        return f"--top-k must be at least 1, not {top_k}"
    return None


async def _search(
    question: str, ref: str, top_k: int, settings: Settings, trace: Trace
) -> tuple[Store, Retrieval]:
    from retrieval.trace import Trace
    from retrieval.types import Query

    async with open_searchable(settings, ref) as opened:
        query = Query(question, (opened.store.index_name,), top_k)
        # The first query of a process pays for opening models and connections: a server does not.
        await opened.retriever.retrieve(query, Trace())
        return opened.store, await opened.retriever.retrieve(query, trace)


def _as_json(
    store: Store, retrieval: Retrieval, hits: tuple[Candidate, ...], trace: Trace
) -> dict[str, Any]:
    return {
        "store": {"id": store.id, "name": store.name},
        "query": retrieval.query.text,
        "best_similarity": retrieval.best_similarity,
        "hits": [_hit(hit) for hit in hits],
        "timings_ms": trace.timings_ms(),
    }


def _hit(hit: Candidate) -> dict[str, Any]:
    passage = hit.passage
    return {
        "passage": passage.id,
        "filename": passage.filename,
        "page": passage.page,
        "chunk": passage.chunk,
        "headings": list(passage.headings),
        "score": hit.score,
        "scores": dict(hit.scores),
        "text": passage.text,
    }


def _print(store: Store, hits: tuple[Candidate, ...], trace: Trace) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not hits:
        console.print(Text(f"nothing found in {clean(store.name)} ({store.id})"))
    for number, hit in enumerate(hits, start=1):
        stages = "  ".join(
            f"{stage} {hit.scores[stage]:.3f}" if stage in hit.scores else f"{stage} -"
            for stage in ("search", "lexical")
        )
        where = Text(f"[{number}] {clean(hit.passage.label)}", style="bold")
        console.print(where.append(f"  fused {hit.score:.3f}  {stages}", style="not bold cyan"))
        snippet = " ".join(clean(hit.passage.text).split())
        console.print(Text(f"    {_shorten(snippet)}"))
    timings = "  ".join(f"{stage} {ms:.1f} ms" for stage, ms in trace.timings_ms().items())
    console.print(Text(timings, style="dim"))


def _shorten(text: str) -> str:
    return text if len(text) <= _SNIPPET_CHARS else text[: _SNIPPET_CHARS - 1] + "…"

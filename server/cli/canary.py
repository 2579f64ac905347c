"""`groundwire canary init` proposes a golden file for a store; `groundwire canary check` asks its questions once.

Exit status: 0 when it was done, 1 when it could not be, or recall at 4 is below `canary_min_recall`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from server.cli.local import READING_SETTINGS, clean, open_searchable, readable

if TYPE_CHECKING:
    from retrieval.types import Passage
    from server.canary import Answer, Report
    from server.catalog import Store
    from server.settings import Settings

SETTINGS = (*READING_SETTINGS, "canary_file")


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "canary",
        help="propose or ask the questions that watch over retrieval",
        description="`init` prints questions about a store, made of its headings and rare words, for you to "
        "edit into a golden file. `check` asks the questions of `canary_file` once and names those that miss; "
        "a server asks them again and again. docs/quality.md describes the file.",
        epilog="Exit status: 0 when it was done, 1 when it could not be or recall at 4 is below canary_min_recall.",
    )
    parser.add_argument("action", choices=("init", "check"), help="what to do")
    parser.add_argument(
        "--store", metavar="NAME", help="the store's name or id (canary_store, default_store)"
    )
    parser.add_argument(
        "--questions", metavar="N", type=int, default=20, help="init: how many to propose (20)"
    )
    parser.add_argument("--json", action="store_true", help="check: print one JSON object")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Questions and figures go to stdout, everything else to stderr."""
    from retrieval.errors import RetrievalError
    from server.bundled import BundledModelError
    from server.catalog import CatalogError
    from server.golden import GoldenError
    from server.published import PublishedError

    ref: str = args.store or settings.canary_store or settings.default_store or ""
    if problem := _problem(args, settings, ref):
        print(f"groundwire canary: {problem}", file=sys.stderr)
        return 1
    try:
        if args.action == "init":
            return _propose(*asyncio.run(_passages(settings, ref)), args.questions)
        store, report = asyncio.run(_check(settings, ref))
    except (BundledModelError, CatalogError, GoldenError, PublishedError, RetrievalError) as error:
        print(f"groundwire canary: {clean(str(error))}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(_as_json(store, report)))
    else:
        _print(store, report, settings.top_k)
    return _judged(report, settings.canary_min_recall)


def _problem(args: argparse.Namespace, settings: Settings, ref: str) -> str | None:
    if not ref:
        return "which store? Name it with --store, or set canary_store or default_store"
    if args.action == "init" and args.questions < 1:
        return f"--questions must be at least 1, not {args.questions}"
    if args.action == "check" and settings.canary_file is None:
        return (
            "which questions? Name the golden file with --canary-file; `canary init` proposes one"
        )
    return None


async def _passages(settings: Settings, ref: str) -> tuple[Store, list[Passage]]:
    from retrieval.lexical import LexicalIndex
    from server.canary import store_to_probe
    from server.catalog import Catalog
    from server.following import Following

    async with AsyncExitStack() as stack:
        settings = stack.enter_context(readable(settings))
        catalog = await stack.enter_async_context(await Catalog.open(settings.resolved_catalog_url))
        store = await store_to_probe(catalog, ref)
        root = settings.data_dir / "lexical"
        if catalog.shared:
            await Following(catalog, root).follow(store)
        return store, LexicalIndex(root).containing(store.index_name, "", "text")


async def _check(settings: Settings, ref: str) -> tuple[Store, Report]:
    from server.canary import Probe, report_of
    from server.golden import read_golden
    from server.retriever import reranker_of

    assert settings.canary_file is not None
    questions = read_golden(settings.canary_file)
    async with AsyncExitStack() as stack:
        settings = stack.enter_context(readable(settings))
        reranker = await stack.enter_async_context(reranker_of(settings))
        opened = await stack.enter_async_context(open_searchable(settings, ref, reranker))
        # The first query of a process pays for opening models and connections: no deadline here.
        index_name = opened.store.index_name
        probe = Probe(opened.retriever, opened.lexical, index_name, settings.min_similarity, None)
        return opened.store, report_of([await probe.ask(question) for question in questions])


def _propose(store: Store, passages: list[Passage], count: int) -> int:
    from server.golden import golden_line
    from server.proposals import propose

    questions = propose(passages, count)
    for question in questions:
        print(golden_line(question))
    if not questions:
        print(
            f"groundwire canary: the store {clean(store.name)!r} holds nothing to ask about",
            file=sys.stderr,
        )
        return 1
    print(
        f"{len(questions)} questions about {clean(store.name)!r}: ask them in your users' words, then set canary_file",
        file=sys.stderr,
    )
    return 0


def _judged(report: Report, least: float | None) -> int:
    from server.canary import WATCHED_RANK

    recall = report.recall[WATCHED_RANK]
    if least is None or recall >= least:
        return 0
    print(
        f"groundwire canary: recall@{WATCHED_RANK} {recall:.3f} is below canary_min_recall ({least})",
        file=sys.stderr,
    )
    return 1


def _figures(report: Report) -> dict[str, float]:
    from retrieval.quality import DEPTH

    recall = {f"recall@{k}": share for k, share in report.recall.items()}
    return {**recall, f"mrr@{DEPTH}": report.mrr}


def _as_json(store: Store, report: Report) -> dict[str, Any]:
    return {
        "store": {"id": store.id, "name": store.name},
        **{name: round(value, 4) for name, value in _figures(report).items()},
        **report.outcomes,
        "questions": [
            {
                "text": answer.question.text,
                "expected": str(answer.question.expected),
                "outcome": answer.outcome,
                "rank": answer.rank,
                "ms": round(answer.seconds * 1000, 1),
            }
            for answer in report.answers
        ],
    }


def _print(store: Store, report: Report, top_k: int) -> None:
    """The figures, then each question whose answer a request for it would not have in its sources."""
    figures = "  ".join(f"{name} {value:.3f}" for name, value in _figures(report).items())
    print(f"{clean(store.name)}: {len(report.answers)} questions  {figures}")
    for answer in report.answers:
        if answer.rank is None or answer.rank > top_k:
            expected = clean(str(answer.question.expected))
            print(f"{_verdict(answer):<8} {clean(answer.question.text)}  ({expected})")


def _verdict(answer: Answer) -> str:
    return answer.outcome if answer.rank is None else f"rank {answer.rank}"

"""`groundwire eval DIR`: how well retrieval finds what a data set's questions ask for.

Exit status: 0 when it was measured, 1 when the data could not be read or the search could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.local import clean, open_embedder

if TYPE_CHECKING:
    from retrieval.quality import Estimate
    from server.settings import Settings

#: No `data_dir`: what is measured lives in a folder of its own and is deleted with it.
SETTINGS = (
    "models_dir",
    "embedder",
    "embedder_backend",
    "query_precision",
    "candidates",
    "rrf_k",
    "dense_weight",
    "lexical_weight",
    "followup_dense_weight",
    "followup_lexical_weight",
    "reranker",
    "rerank_candidates",
)


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "eval",
        help="measure retrieval on a data set",
        description="Index DIR/corpus.jsonl in a temporary folder, ask DIR/queries.jsonl, and print recall, "
        "nDCG and MRR with 95 % intervals. docs/quality.md describes the files.",
        epilog="Exit status: 0 when it was measured, 1 when the data could not be read or the search "
        "could not run.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="holds the two files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Measure, and print the figures to stdout; progress goes to stderr."""
    from retrieval.errors import RetrievalError
    from server.bundled import BundledModelError
    from server.evaluation import EvaluationError

    try:
        results = asyncio.run(_evaluate(args.directory, settings))
    except (BundledModelError, EvaluationError, RetrievalError) as error:
        print(f"groundwire eval: {clean(str(error))}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({way: _as_json(estimates) for way, estimates in results.items()}))
    else:
        _print(results)
    return 0


async def _evaluate(directory: Path, settings: Settings) -> dict[str, dict[str, Estimate]]:
    from server.evaluation import evaluate, read_data_set
    from server.retriever import followup_weights, fusion_settings, reranker_of

    data = read_data_set(directory, followup_weights(settings))
    embedder = await open_embedder(settings, quiet=False)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="groundwire-eval-"))
        return await evaluate(
            data,
            embedder,
            fusion_settings(settings),
            Path(folder),
            await stack.enter_async_context(reranker_of(settings)),
            settings.rerank_candidates,
            _say,
        )


def _say(step: str, done: int, total: int) -> None:
    """A line for each quarter of a step."""
    if done == total or done * 4 // total != (done - 1) * 4 // total:
        print(f"{step} {done}/{total}", file=sys.stderr, flush=True)


def _as_json(estimates: dict[str, Estimate]) -> dict[str, Any]:
    """The means by metric, and their intervals beside them under one key."""
    means: dict[str, Any] = {name: round(found.mean, 4) for name, found in estimates.items()}
    means["interval_95"] = {
        name: [round(found.low, 4), round(found.high, 4)] for name, found in estimates.items()
    }
    return means


def _print(results: dict[str, dict[str, Estimate]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *next(iter(results.values())))
    for way, estimates in results.items():
        cells = (f"{e.mean:.3f} ({e.low:.3f}-{e.high:.3f})" for e in estimates.values())
        table.add_row(way, *cells)
    Console().print(table)

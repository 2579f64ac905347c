"""`groundwire smoke URL`: asks a running server one question and shows where the seconds went.

Exit status: 0 when a grounded answer came in time, 1 when it came later than `--max-seconds` or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from server.cli.local import clean

if TYPE_CHECKING:
    from server.settings import Settings
    from server.smoke import Answer, Question

SETTINGS = ("api_keys",)
DEFAULT_QUESTION = "What are these documents about?"
#: A container that starts loads a model first; each wait of Modal's proxy ends in a redirect to a next one.
WAKING_SECONDS = 900.0
MAX_REDIRECTS = 20


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "smoke",
        help="ask a running server one question, and time its stages",
        description="Ask a running server one question and print the seconds of embedding, retrieval and "
        "LLM. The key is the first of `api_keys`.",
        epilog="Exit status: 0 when a grounded answer came in time, 1 when it did not.",
    )
    parser.add_argument("url", metavar="URL", help="the server's address, with or without /v1")
    parser.add_argument(
        "--question",
        metavar="TEXT",
        default=DEFAULT_QUESTION,
        help=f"best one that the documents answer ({DEFAULT_QUESTION})",
    )
    parser.add_argument(
        "--store", metavar="NAME", help="store to answer from; default: the server's own"
    )
    parser.add_argument(
        "--max-seconds", metavar="S", type=float, default=5.0, help="longest answer (5)"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=int, default=200, help="answer's limit (200)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask and print; what went wrong goes to stderr."""
    from server.smoke import Question, SmokeFailed, rows

    question = Question(args.question, args.store, args.max_tokens)
    try:
        answer = asyncio.run(_ask(args.url, settings, question))
    except SmokeFailed as error:
        print(f"groundwire smoke: {clean(str(error))}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({**asdict(answer), "rows": dict(rows(answer))}))
    else:
        _print(answer)
    if answer.seconds > args.max_seconds:
        took = f"the answer took {answer.seconds:.2f} s, more than {args.max_seconds:g}"
        print(f"groundwire smoke: {took}", file=sys.stderr)
        return 1
    return 0


async def _ask(url: str, settings: Settings, question: Question) -> Answer:
    import httpx

    from server.smoke import SmokeFailed, ask

    headers = {}
    if settings.api_keys:
        key = settings.api_keys[0].get_secret_value().rpartition(":")[2]
        headers["authorization"] = f"Bearer {key}"
    base = url.rstrip("/").removesuffix("/v1")
    try:
        client = httpx.AsyncClient(
            base_url=base,
            headers=headers,
            timeout=WAKING_SECONDS,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
        )
    except httpx.InvalidURL as error:
        raise SmokeFailed(f"{url!r} is no URL: {error}") from error
    async with client:
        return await ask(client, question)


def _print(answer: Answer) -> None:
    from server.smoke import rows

    print(clean(answer.text).strip())
    print(f"\nsources: {clean(', '.join(answer.sources)) or 'none'} (status {answer.status})\n")
    for name, seconds in rows(answer):
        print(f"{name:<22}{seconds:>8.3f} s")
    if answer.waking_seconds > 1:
        print(f"before that, waiting for the server: {answer.waking_seconds:.1f} s")

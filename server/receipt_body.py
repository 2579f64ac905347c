"""An account as `GET /v1/rag/receipts/{id}` and `rag.dry_run` answer it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from retrieval.types import Candidate, Passage
from server import receipts
from server.account import Account
from server.prepared import Count
from server.receipts import Receipt

Link = Callable[[Passage], str]


def receipt_body(account: Account, link: Link, *, min_similarity: float) -> dict[str, Any]:
    """The whole receipt; `link` makes a passage's absolute URL, `min_similarity` is the server's."""
    asked, plan, receipt = account.asked, account.plan, account.receipt
    engine = account.engine
    return {
        "object": "rag.receipt",
        "id": asked.completion_id,
        "request_id": asked.request_id,
        "trace_id": asked.trace_id,
        "created": asked.created,
        "endpoint": asked.endpoint,
        "stream": plan.stream,
        "dry_run": plan.dry_run,
        "outcome": account.outcome,
        "model": plan.model,
        "engine_model": plan.engine_model,
        "route": None if receipt.route is None else receipts.route_field(receipt.route),
        "stores": [
            {"id": store.id, "name": store.name, "version": store.version}
            for store in receipt.stores
        ],
        "chosen_in": plan.chosen_in,
        "limits": {
            "max_num_results": plan.top_k,
            "score_threshold": plan.score_threshold,
            "min_similarity": min_similarity,
            "max_context_tokens": plan.max_context_tokens,
        },
        **_question(receipt, link),
        "tokens": {
            "window": account.window_tokens,
            "answer_reserve": plan.answer_tokens,
            **_tokens(receipt, _whole(account)),
            "cached": None if engine is None else engine.cached_tokens,
            "completion": None if engine is None else engine.completion_tokens,
        },
        "parts": [
            {**_question(part, link), "tokens": _tokens(part, _Counted.of(count))}
            for part, count in zip_longest(receipt.parts, account.counts[: len(receipt.parts)])
        ],
        "cached": list(receipt.cached),
        "timings_ms": dict(account.timings_ms),
    }


def _question(receipt: Receipt, link: Link) -> dict[str, Any]:
    """What was searched for, what was found, and what became of each of it."""
    several = bool(receipt.parts)
    numbers = {receipt.sources[i].passage.id: i + 1 for i in receipt.shown}
    why = {drop.candidate.passage.id: drop.reason for drop in receipt.dropped}
    searched = receipt.question and not several
    return {
        "status": receipt.status,
        "reason": receipt.reason,
        "queries": [receipt.question, *receipt.also] if searched else [],
        "best_similarity": receipt.best_similarity,
        "candidates": [
            _candidate(each, rank, receipt, link, numbers, why)
            for rank, each in enumerate(receipt.candidates, start=1)
        ],
        "earlier_sources": [
            {"number": i + 1, **_source(each, receipt, link)}
            for i, each in enumerate(() if several else receipt.sources)
            if each.passage.id not in numbers
        ],
    }


def _candidate(
    candidate: Candidate,
    rank: int,
    receipt: Receipt,
    link: Link,
    numbers: Mapping[str, int],
    why: Mapping[str, str],
) -> dict[str, Any]:
    number = numbers.get(candidate.passage.id)
    return {
        "rank": rank,
        "number": number,
        "kept": number is not None,
        "reason": why.get(candidate.passage.id) if number is None else None,
        **_source(candidate, receipt, link),
        "scores": _scores(candidate, rank),
    }


def _source(candidate: Candidate, receipt: Receipt, link: Link) -> dict[str, Any]:
    shown = receipts.search_result(candidate, include_text=receipt.include_text)
    return {**shown, "chunk": candidate.passage.chunk, "url": link(candidate.passage)}


def _scores(candidate: Candidate, rank: int) -> dict[str, dict[str, float | int | None]]:
    """Rank and score at each stage; the last stage's are the candidate's own."""
    last = "rerank" if "rerank" in candidate.scores else "fuse"
    scores = {**candidate.scores, last: candidate.score}
    ranks = {**candidate.ranks, last: rank}
    return {
        stage: {"rank": ranks.get(stage), "score": round(scores[stage], 6)}
        for stage in ("search", "lexical", "fuse", "rerank")
        if stage in scores
    }


@dataclass(frozen=True, slots=True)
class _Counted:
    """Tokens of a final prompt, and of the client's texts alone; None: not known."""

    prompt: int | None
    messages: int | None

    @classmethod
    def of(cls, count: Count | None) -> _Counted:
        return cls(None, None) if count is None else cls(count.prompt, count.messages)


def _whole(account: Account) -> _Counted:
    """By the engine that answered, else by a dry run."""
    if account.engine is not None:
        return _Counted(account.engine.prompt_tokens, None)
    counts = [count for count in account.counts if count is not None]
    if not counts or len(counts) < len(account.counts):
        return _Counted(None, None)
    return _Counted(sum(count.prompt for count in counts), sum(count.messages for count in counts))


def _tokens(receipt: Receipt, counted: _Counted) -> dict[str, int | None]:
    """`client`, `earlier_context` and `context` add up to `prompt`, and `messages` and `template` to `client`."""
    client, context = receipt.counted_tokens, None
    if not receipt.sources:
        client, context = (client if counted.prompt is None else counted.prompt), 0
    elif client is not None:
        context = None if counted.prompt is None else counted.prompt - client
        client -= receipt.earlier_tokens
    template = None
    if client is not None and counted.messages is not None:
        template = client - counted.messages
    return {
        "prompt": counted.prompt,
        "client": client,
        "messages": counted.messages,
        "template": template,
        "earlier_context": receipt.earlier_tokens,
        "context": context,
        "context_charged": receipt.context_tokens - receipt.earlier_tokens,
        "context_budget": receipt.budget_tokens,
    }

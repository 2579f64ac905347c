"""What is kept of one request, so that its receipt can be asked for later. Pure.

No text of a passage unless the request asked for it, and no prompt: only what was searched for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from retrieval.types import Candidate, Drop, Passage
from server.engine.base import EngineTimings
from server.plan import Plan
from server.prepared import Count, Prepared
from server.queries import MAX_QUERY_CHARACTERS
from server.receipts import Receipt

#: An account's own objects, and a candidate's, roughly.
_ACCOUNT_BYTES = 2_500
_CANDIDATE_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class Asked:
    """How a request came in: its ids, when (Unix seconds), at which route, in which trace."""

    completion_id: str
    request_id: str
    trace_id: str | None
    created: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class Account:
    """One request as far as it is known; `outcome` is None while it runs.

    `plan` is the request's without its texts. `window_tokens` is the engine's prompt and answer together;
    `counts` are as in Prepared.
    """

    asked: Asked
    plan: Plan
    receipt: Receipt
    outcome: str | None
    timings_ms: Mapping[str, float]
    engine: EngineTimings | None
    window_tokens: int
    counts: tuple[Count | None, ...] = ()


def account_of(asked: Asked, prepared: Prepared, window_tokens: int) -> Account:
    """What is known of a request now."""
    recording = prepared.recording
    return Account(
        asked=asked,
        plan=replace(prepared.plan, question="", also=()),
        receipt=prepared.receipt,
        outcome=recording.outcome,
        timings_ms=recording.trace.timings_ms(),
        engine=recording.timings,
        window_tokens=window_tokens,
        counts=prepared.counts,
    )


def to_keep(account: Account) -> Account:
    """The same without what is not to be kept."""
    return replace(account, receipt=_to_keep(account.receipt))


def _to_keep(receipt: Receipt) -> Receipt:
    known: dict[int, Candidate] = {}

    def kept(candidate: Candidate) -> Candidate:
        if receipt.include_text:
            return candidate
        if (found := known.get(id(candidate))) is None:
            found = known[id(candidate)] = _without_text(candidate)
        return found

    return replace(
        receipt,
        link=_no_link,
        question=receipt.question[:MAX_QUERY_CHARACTERS],
        also=tuple(text[:MAX_QUERY_CHARACTERS] for text in receipt.also),
        sources=tuple(kept(candidate) for candidate in receipt.sources),
        candidates=tuple(kept(candidate) for candidate in receipt.candidates),
        dropped=tuple(Drop(kept(drop.candidate), drop.reason) for drop in receipt.dropped),
        parts=tuple(_to_keep(part) for part in receipt.parts),
    )


def _no_link(passage: Passage) -> str:
    """The link that an answer had holds its request; whoever asks for a receipt gets a new one."""
    return passage.id


def _without_text(candidate: Candidate) -> Candidate:
    own = candidate.passage
    passage = Passage(
        own.file_id,
        own.content_hash,
        own.chunk,
        own.filename,
        "",
        own.title,
        own.headings,
        own.page,
    )
    return Candidate(passage, candidate.score, candidate.scores, candidate.ranks)


def account_bytes(account: Account) -> int:
    """About what a kept account takes."""
    return _ACCOUNT_BYTES + sum(map(_bytes, account.receipt.parts or (account.receipt,)))


def _bytes(receipt: Receipt) -> int:
    each = {
        id(candidate): candidate.passage for candidate in (*receipt.candidates, *receipt.sources)
    }
    texts = sum(sys.getsizeof(passage.text) for passage in each.values())
    queries = sum(map(sys.getsizeof, (receipt.question, *receipt.also)))
    return _CANDIDATE_BYTES * len(each) + texts + queries

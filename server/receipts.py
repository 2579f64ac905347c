"""The one account of what a request was grounded in; all that is shown of sources is read from it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from retrieval.types import Candidate, Drop, Passage
from server.routing import Route

Status = Literal["hit", "miss", "off", "degraded"]
#: Why a candidate may not be in the prompt: what `Drop.reason` can be, here and in `retrieval.pack`.
DROP_REASONS = (
    "below_similarity", "below_threshold", "duplicate", "over_limit", "over_budget", "no_room", "not_considered",
)  # fmt: skip
#: Node's HTTP client refuses more than 16 KB of headers; ours stay far below (WIRE section 4).
MAX_HEADER_SOURCES = 20
MAX_HEADER_BYTES = 2048
#: Code in any fence or backticks, and Markdown links: `[1]` in them is no citation.
#: A link's parts exclude their own brackets, so that a run of them is not scanned again from each.
NOT_PROSE = re.compile(
    r"(?P<fence>```|~~~).*?(?:(?P=fence)|\Z)"
    r"|(?P<ticks>`+)(?!`)[^\n]*?(?<!`)(?P=ticks)(?!`)"
    r"|\[[^\[\]\n]*\]\((?:[^()\n]|\([^()\n]*\))*\)"
    r"|^ {0,3}\[[^\[\]\n]*\]:\s",
    re.DOTALL | re.MULTILINE,
)
MARKER = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


@dataclass(frozen=True, slots=True)
class Searched:
    """A store that was searched, and the version that its index had."""

    id: str
    name: str
    version: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Why an answer saw what it saw.

    `reason` explains a status other than hit (`no_room`, `below_similarity`, `no_hits`, `empty_query`,
    `no_store`, `timeout`, `unavailable`). `sources` is all that the prompt holds, in the order of its numbers;
    `found` indexes those that this question found, best first (None: all, as they are). `also` is what was
    searched beside the question; `link` makes a passage's absolute URL; `cached` says what came out of a cache
    (`embedding`, `retrieval`, `conversation`, `answer`); `route` is which model of `auto` answers, and why.
    `parts` are the prompts' own, where a text completion has a list of them; the whole then sums them up.

    `candidates` are all that retrieval ranked, best first; each of them is among those that were found, or
    in `dropped` with the reason. `counted_tokens` is the engine's count of the prompt before the question's own
    sources went in (None: not counted), `earlier_tokens` what the sources of earlier turns take of it, and
    `budget_tokens` what was free for more. `context_tokens` is what all sources were taken to cost.
    """

    status: Status
    link: Callable[[Passage], str]
    reason: str | None = None
    question: str = ""
    also: tuple[str, ...] = ()
    sources: tuple[Candidate, ...] = ()
    found: tuple[int, ...] | None = None
    dropped: tuple[Drop, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    best_similarity: float | None = None
    stores: tuple[Searched, ...] = ()
    context_tokens: int = 0
    counted_tokens: int | None = None
    earlier_tokens: int = 0
    budget_tokens: int | None = None
    include_text: bool = False
    footer: bool = False
    cached: tuple[str, ...] = ()
    parts: tuple[Receipt, ...] = ()
    route: Route | None = None

    @property
    def shown(self) -> tuple[int, ...]:
        """Indexes of the sources that this question found, best first."""
        return tuple(range(len(self.sources))) if self.found is None else self.found


def summed(whole: Receipt, parts: Sequence[Receipt]) -> Receipt:
    """`whole` with these parts: a hit among them is a hit, and what they found comes prompt by prompt."""
    best = min(parts, key=lambda part: ("hit", "degraded", "miss").index(part.status))
    sources = [part.sources[index] for part in parts for index in part.shown]
    counted = [part.counted_tokens for part in parts if part.counted_tokens is not None]
    return replace(
        whole,
        status=best.status,
        reason=best.reason,
        sources=tuple(sources),
        dropped=tuple(drop for part in parts for drop in part.dropped),
        context_tokens=sum(part.context_tokens for part in parts),
        counted_tokens=sum(counted) if len(counted) == len(parts) else None,
        parts=tuple(parts),
    )


def uncounted(receipt: Receipt) -> Receipt:
    """The receipt of a request whose prompt another engine counts than the one that was asked."""
    parts = tuple(uncounted(part) for part in receipt.parts)
    return replace(receipt, counted_tokens=None, budget_tokens=None, parts=parts)


def without_sources(receipt: Receipt, reason: str) -> Receipt:
    """The receipt of a request whose sources were taken out again."""
    out = () if receipt.parts else [Drop(receipt.sources[index], reason) for index in receipt.shown]
    counted = receipt.counted_tokens
    return replace(
        receipt,
        status="miss" if receipt.status == "hit" else receipt.status,
        reason=reason,
        sources=(),
        found=(),
        dropped=(*receipt.dropped, *out),
        context_tokens=0,
        counted_tokens=None if counted is None else counted - receipt.earlier_tokens,
        earlier_tokens=0,
        parts=tuple(without_sources(part, reason) for part in receipt.parts),
    )


@dataclass(frozen=True, slots=True)
class Citation:
    """A marker `[n]` in the answer: code point offsets into the text, and the source's index from 0."""

    start: int
    end: int
    source: int


def find_citations(text: str, sources: int) -> list[Citation]:
    """The markers that name one of `sources` sources, in order; those in code and links do not count."""
    if "[" not in text:
        return []
    masked = NOT_PROSE.sub(lambda match: " " * len(match.group()), text)
    found = []
    for match in MARKER.finditer(masked):
        for number in match.group(1).split(","):
            if 1 <= int(number) <= sources:
                found.append(Citation(match.start(), match.end(), int(number) - 1))
    return found


def annotate(receipt: Receipt, text: str) -> tuple[list[dict[str, Any]], bool]:
    """OpenAI's `url_citation` annotations of an answer, and whether the text itself cites anything.

    A text that cites nothing still gets the sources that its question found, at start = end = len(text).
    """
    citations = find_citations(text, len(receipt.sources))
    cited = bool(citations)
    if not cited:
        end = len(text)
        citations = [Citation(end, end, index) for index in receipt.shown]
    return [_annotation(receipt, citation) for citation in citations], cited


def _annotation(receipt: Receipt, citation: Citation) -> dict[str, Any]:
    passage = receipt.sources[citation.source].passage
    return {
        "type": "url_citation",
        "url_citation": {
            "start_index": citation.start,
            "end_index": citation.end,
            "title": passage.label,
            "url": receipt.link(passage),
        },
    }


def rag_field(
    receipt: Receipt, timings_ms: Mapping[str, float], *, cited: bool | None = None
) -> dict[str, Any]:
    """The response's `rag` object; `cited` is absent from a stream's first chunk, where it is unknown."""
    field: dict[str, Any] = {"status": receipt.status}
    if receipt.reason is not None:
        field["reason"] = receipt.reason
    field["search_results"] = [
        search_page(
            [part.question, *part.also],
            [part.sources[index] for index in part.shown],
            include_text=part.include_text,
            numbers=[index + 1 for index in part.shown],
        )
        for part in receipt.parts or (receipt,)
    ]
    if cited is not None:
        field["cited"] = cited
    if receipt.cached:
        field["cached"] = list(receipt.cached)
    if receipt.route is not None:
        field["route"] = route_field(receipt.route)
    field["timings_ms"] = dict(timings_ms)
    return field


def route_field(route: Route) -> dict[str, Any]:
    """Which model of `auto` answers, and why."""
    return {"to": route.size, "reason": route.reason, "model": route.model}


def search_page(
    queries: Sequence[str],
    found: Sequence[Candidate],
    *,
    include_text: bool,
    numbers: Sequence[int] = (),
) -> dict[str, Any]:
    """OpenAI's page of search results, best first; without `include_text` the contents stay empty.

    `numbers`, if given, are those that the results have in the prompt: `[3]` cites the one with `number` 3.
    """
    data = [search_result(candidate, include_text=include_text) for candidate in found]
    for result, number in zip(data, numbers, strict=False):
        result["number"] = number
    return {
        "object": "vector_store.search_results.page",
        "search_query": list(queries),
        "data": data,
        "has_more": False,
        "next_page": None,
    }


def search_result(candidate: Candidate, *, include_text: bool) -> dict[str, Any]:
    """One row of OpenAI's page of search results."""
    passage = candidate.passage
    attributes: dict[str, Any] = {} if passage.page is None else {"page": passage.page}
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "score": candidate.shown_score,
        "attributes": attributes,
        "content": [{"type": "text", "text": passage.text}] if include_text else [],
    }


def footer(receipt: Receipt, text: str) -> str:
    """A list of what this question found or `text` cites, for clients that show neither annotations nor headers."""
    if not (receipt.footer and receipt.sources):
        return ""
    cited = {citation.source for citation in find_citations(text, len(receipt.sources))}
    passages = [(i, receipt.sources[i].passage) for i in sorted(cited.union(receipt.shown))]
    lines = [f"[{i + 1}] {passage.label}: {receipt.link(passage)}" for i, passage in passages]
    if not lines:
        return ""
    return "\n\nSources:\n" + "\n".join(lines)


def headers(receipt: Receipt, timings_ms: Mapping[str, float]) -> dict[str, str]:
    """`x-rag-status`, `x-rag-sources`, `x-rag-cached`, `x-rag-model` and `Server-Timing`; ASCII only."""
    out: dict[str, str] = {"x-rag-status": receipt.status}
    if receipt.sources:
        found = [receipt.sources[index] for index in receipt.shown]
        out["x-rag-sources"] = _source_list([c.passage.file_id for c in (*found, *receipt.sources)])
    if receipt.cached:
        out["x-rag-cached"] = ",".join(receipt.cached)
    if receipt.route is not None:
        out["x-rag-model"] = quote(receipt.route.model, safe="/-_.:@")
    return {**out, **server_timing(timings_ms)}


def server_timing(timings_ms: Mapping[str, float]) -> dict[str, str]:
    """The header `Server-Timing`, where any stage ran."""
    stages = ", ".join(f"{name};dur={ms:g}" for name, ms in timings_ms.items())
    return {"server-timing": stages} if stages else {}


def _source_list(file_ids: Sequence[str]) -> str:
    unique = [quote(file_id, safe="-_.") for file_id in dict.fromkeys(file_ids)]
    kept: list[str] = []
    for file_id in unique[:MAX_HEADER_SOURCES]:
        if len(",".join([*kept, file_id])) > MAX_HEADER_BYTES - len(",…"):
            break
        kept.append(file_id)
    return ",".join(kept) + (",..." if len(kept) < len(unique) else "")

"""pack: ranked candidates become the context, within a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrieval.types import Candidate, Context, Drop


def pack(
    candidates: Sequence[Candidate],
    cost_tokens: Callable[[Candidate], int],
    *,
    budget_tokens: int,
    frame_tokens: int,
    max_sources: int,
    score_threshold: float = 0.0,
) -> Context:
    """Take candidates best first until the budget or the number of sources is spent.

    `cost_tokens` says what a candidate costs as it will be rendered, and is asked only of one that may go in;
    `frame_tokens` is what the block around the sources costs once. A passage that does not fit is passed over
    and a smaller one after it may still go in. An identical text is packed once. Nothing is ever cut short: a
    source is whole or absent. A cost of 0 is a source that the prompt holds already: it counts, and always fits.
    """
    sources: list[Candidate] = []
    dropped: list[Drop] = []
    texts: set[str] = set()
    spent = frame_tokens
    for candidate in candidates:
        text = candidate.passage.text
        if candidate.shown_score < score_threshold:
            dropped.append(Drop(candidate, "below_threshold"))
        elif text in texts:
            dropped.append(Drop(candidate, "duplicate"))
        elif len(sources) == max_sources:
            dropped.append(Drop(candidate, "over_limit"))
        elif (cost := cost_tokens(candidate)) and spent + cost > budget_tokens:
            dropped.append(Drop(candidate, "over_budget"))
        else:
            sources.append(candidate)
            texts.add(text)
            spent += cost
    return Context(tuple(sources), tuple(dropped), spent if sources else 0)

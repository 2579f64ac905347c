"""pack: what goes into the budget, what does not, and why."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retrieval.pack import pack
from retrieval.types import Candidate, Context, Passage


def candidate(chunk: int, score: float = 0.5, text: str | None = None) -> Candidate:
    return Candidate(Passage("file-1", "a" * 64, chunk, "a.md", text or f"text {chunk}"), score)


def packed(candidates: list[Candidate], costs: list[int], **options: Any) -> Context:
    cost = {id(each): tokens for each, tokens in zip(candidates, costs, strict=True)}
    limits = {"budget_tokens": 100, "frame_tokens": 10, "max_sources": 4, **options}
    return pack(candidates, lambda each: cost[id(each)], **limits)


def chunks(context: Context) -> list[int]:
    return [source.passage.chunk for source in context.sources]


def reasons(context: Context) -> list[tuple[int, str]]:
    return [(drop.candidate.passage.chunk, drop.reason) for drop in context.dropped]


def test_what_the_prompt_holds_already_always_fits() -> None:
    candidates = [candidate(i) for i in range(3)]
    context = packed(candidates, [0, 50, 0], budget_tokens=5)
    assert chunks(context) == [0, 2]
    assert reasons(context) == [(1, "over_budget")]


def test_best_first_until_the_number_is_reached() -> None:
    context = packed([candidate(i) for i in range(6)], [10] * 6)
    assert chunks(context) == [0, 1, 2, 3]
    assert reasons(context) == [(4, "over_limit"), (5, "over_limit")]
    assert context.tokens == 10 + 4 * 10


def test_what_cannot_go_in_is_not_counted() -> None:
    counted = []

    def cost(each: Candidate) -> int:
        counted.append(each.passage.chunk)
        return 10

    low, same = candidate(1, score=0.1), candidate(2, text="text 0")
    after = [candidate(i) for i in range(3, 9)]
    pack([candidate(0), low, same, *after], cost, budget_tokens=100, frame_tokens=10, max_sources=2,
         score_threshold=0.2)  # fmt: skip
    assert counted == [0, 3]


def test_the_budget_counts_the_frame_and_is_inclusive() -> None:
    assert chunks(packed([candidate(0)], [90])) == [0]
    context = packed([candidate(0)], [91])
    assert (chunks(context), reasons(context), context.tokens) == ([], [(0, "over_budget")], 0)


def test_a_smaller_one_after_it_may_still_go_in() -> None:
    context = packed([candidate(0), candidate(1), candidate(2)], [50, 60, 40])
    assert chunks(context) == [0, 2]
    assert reasons(context) == [(1, "over_budget")]
    assert context.tokens == 100


def test_the_same_text_goes_in_once() -> None:
    context = packed([candidate(0, text="same"), candidate(1, text="same"), candidate(2)], [5] * 3)
    assert chunks(context) == [0, 2]
    assert reasons(context) == [(1, "duplicate")]


def test_the_threshold_is_inclusive() -> None:
    context = packed([candidate(0, 0.5), candidate(1, 0.49)], [5, 5], score_threshold=0.5)
    assert (chunks(context), reasons(context)) == ([0], [(1, "below_threshold")])


def test_the_threshold_is_compared_with_the_score_that_is_shown() -> None:
    each = candidate(0, 61 / 63)
    assert each.score < each.shown_score
    assert chunks(packed([each], [5], score_threshold=each.shown_score)) == [0]
    assert chunks(packed([each], [5], score_threshold=each.shown_score + 1e-6)) == []


def test_no_budget() -> None:
    for budget in (0, -500):
        context = packed([candidate(0)], [1], budget_tokens=budget)
        assert (context.sources, context.tokens) == ((), 0)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["a", "b", "c"])), max_size=12),
    st.integers(-10, 150),
)
def test_never_over_budget_and_nothing_is_lost(rows: list[tuple[int, str]], budget: int) -> None:
    candidates = [candidate(i, text=text) for i, (_, text) in enumerate(rows)]
    costs = [cost for cost, _ in rows]
    context = packed(candidates, costs, budget_tokens=budget)
    taken = chunks(context)
    assert not taken or context.tokens == 10 + sum(costs[i] for i in taken) <= budget
    assert sorted([*taken, *(i for i, _ in reasons(context))]) == list(range(len(rows)))

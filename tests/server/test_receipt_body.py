"""receipt_body: an account as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retrieval.types import Candidate, Drop, Passage
from server import receipts
from server.engine.base import EngineTimings
from server.prepared import Count
from server.receipt_body import receipt_body
from server.receipts import Receipt, Searched
from tests.server.test_receipt_ring import account

TIMINGS = EngineTimings(0.1, 0.2, 0.3, prompt_tokens=100, completion_tokens=7, cached_tokens=64)


def candidate(chunk: int, **fields: Any) -> Candidate:
    return Candidate(Passage("file-1", "a" * 64, chunk, "a.md", f"text {chunk}"), 0.5, **fields)


ONE, TWO, THREE = (candidate(chunk) for chunk in range(3))
HIT = Receipt(
    "hit", lambda _: "", question="Why?", also=("Why? Because.",), sources=(THREE, ONE), found=(1,),
    dropped=(Drop(TWO, "over_budget"), Drop(THREE, "over_limit")), candidates=(ONE, TWO, THREE),
    stores=(Searched("vs_1", "docs", 3),), context_tokens=70, counted_tokens=55, earlier_tokens=30,
    budget_tokens=500,
)  # fmt: skip


def body(receipt: Receipt, **fields: Any) -> dict[str, Any]:
    made = replace(account(1, receipt), **fields)
    return receipt_body(made, lambda passage: f"http://x/{passage.id}", min_similarity=0.15)


def tokens(receipt: Receipt, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = body(receipt, **fields)["tokens"]
    return found


def test_every_candidate_is_kept_or_says_why_not() -> None:
    made = body(HIT)
    assert [(row["rank"], row["kept"], row["number"], row["reason"]) for row in made["candidates"]] == [
        (1, True, 2, None), (2, False, None, "over_budget"), (3, False, None, "over_limit"),
    ]  # fmt: skip
    assert [row["number"] for row in made["earlier_sources"]] == [1]
    assert made["queries"] == ["Why?", "Why? Because."]
    assert made["stores"] == [{"id": "vs_1", "name": "docs", "version": 3}]
    assert made["candidates"][1]["url"] == "http://x/file-1/aaaaaaaaaaaaaaaa/1"
    assert "text 1" not in str(made)


def test_scores_by_stage() -> None:
    fused = candidate(0, scores={"search": 0.25, "lexical": 7.0}, ranks={"search": 2, "lexical": 1})
    (row,) = body(replace(HIT, candidates=(fused,)))["candidates"]
    assert row["scores"] == {
        "search": {"rank": 2, "score": 0.25},
        "lexical": {"rank": 1, "score": 7.0},
        "fuse": {"rank": 1, "score": 0.5},
    }
    reranked = replace(
        fused, scores={**fused.scores, "fuse": 0.9, "rerank": 0.5}, ranks={**fused.ranks, "fuse": 4}
    )
    rows = body(replace(HIT, candidates=(ONE, reranked)))["candidates"]
    assert rows[1]["scores"] == {
        **row["scores"],
        "fuse": {"rank": 4, "score": 0.9},
        "rerank": {"rank": 2, "score": 0.5},
    }


@pytest.mark.parametrize(
    ("receipt", "fields", "expected"),
    [
        # prompt, client, earlier, context
        (HIT, {"engine": TIMINGS}, (100, 25, 30, 45)),
        (HIT, {}, (None, 25, 30, None)),
        (HIT, {"counts": (Count(90, 20),)}, (90, 25, 30, 35)),
        (HIT, {"counts": (None,)}, (None, 25, 30, None)),
        (replace(HIT, counted_tokens=None), {"engine": TIMINGS}, (100, None, 30, None)),
        (receipts.without_sources(HIT, "no_room"), {"engine": TIMINGS}, (100, 100, 0, 0)),
        (receipts.without_sources(HIT, "no_room"), {}, (None, 25, 0, 0)),
        (Receipt("off", lambda _: ""), {"engine": TIMINGS}, (100, 100, 0, 0)),
        (Receipt("miss", lambda _: "", counted_tokens=55), {}, (None, 55, 0, 0)),
    ],
)
def test_the_parts_of_the_prompt(receipt: Receipt, fields: Any, expected: Any) -> None:
    made = tokens(receipt, **fields)
    assert (made["prompt"], made["client"], made["earlier_context"], made["context"]) == expected
    assert made["context_charged"] == receipt.context_tokens - made["earlier_context"]


def test_a_dry_run_tells_the_client_s_texts_from_the_template() -> None:
    made = tokens(HIT, counts=(Count(90, 20),))
    assert (made["messages"], made["template"]) == (20, 5)
    made = tokens(HIT, engine=TIMINGS)
    assert (made["messages"], made["template"], made["cached"], made["completion"]) == (
        None, None, 64, 7,
    )  # fmt: skip


def test_several_prompts_have_a_part_each() -> None:
    miss = Receipt("miss", lambda _: "", reason="no_hits", question="Two?", counted_tokens=5)
    first = replace(HIT, sources=(ONE,), found=(0,), earlier_tokens=0, context_tokens=40)
    whole = receipts.summed(Receipt("miss", lambda _: ""), [first, miss])
    made = body(whole, counts=(Count(90, 20), Count(5, 5)))
    assert (made["status"], made["queries"], made["candidates"]) == ("hit", [], [])
    assert [part["queries"] for part in made["parts"]] == [["Why?", "Why? Because."], ["Two?"]]
    assert [part["reason"] for part in made["parts"]] == [None, "no_hits"]
    assert (made["tokens"]["prompt"], made["tokens"]["client"], made["tokens"]["context"]) == (
        95,
        60,
        35,
    )
    assert [part["tokens"]["context"] for part in made["parts"]] == [35, 0]
    assert [part["tokens"]["prompt"] for part in body(whole)["parts"]] == [None, None]


def test_where_another_engine_counts_nothing_is_said_of_parts() -> None:
    made = tokens(receipts.uncounted(HIT), engine=TIMINGS)
    assert (made["prompt"], made["client"], made["context"]) == (100, None, None)

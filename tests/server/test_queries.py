"""What of a conversation is searched for beside its last question."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval.types import WeightedText
from server.queries import TAIL_CHARACTERS, FollowUpWeights, in_context, question_index, tail_of
from server.wire.chat import Message

FIRST = ("user", "What is a quagga?")
ANSWER = ("assistant", "A zebra that died out.")
FOLLOW_UP = ("user", "When?")


def messages(*turns: tuple[str, Any]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]


def searched(
    *turns: tuple[str, Any], weights: FollowUpWeights | None = None
) -> tuple[WeightedText, ...]:
    conversation = messages(*turns)
    return in_context(conversation, question_index(conversation), weights or FollowUpWeights())


def test_a_first_question_is_searched_alone() -> None:
    assert searched(FIRST) == ()
    assert searched(("system", "Be brief."), FIRST) == ()


def test_a_follow_up_is_also_searched_with_the_turn_before_it() -> None:
    expected = (WeightedText("When?\nWhat is a quagga?\nA zebra that died out.", 3.0, 0.25),)
    assert searched(FIRST, ANSWER, FOLLOW_UP, weights=FollowUpWeights(3.0, 0.25)) == expected


def test_an_answer_that_no_question_stands_before() -> None:
    (found,) = searched(ANSWER, FOLLOW_UP)
    assert found.text == "When?\nA zebra that died out."


def test_the_latest_answer_with_text_counts() -> None:
    called = ("assistant", None)
    older = (("user", "An older question?"), ("assistant", "An older answer."))
    (found,) = searched(*older, FIRST, ANSWER, called, ("tool", "1883"), FOLLOW_UP)
    assert found.text == "When?\nWhat is a quagga?\nA zebra that died out."


def test_a_prefill_after_the_question_is_no_answer_before_it() -> None:
    assert searched(FIRST, ("assistant", "A quagga is")) == ()


def test_the_text_parts_of_an_answer() -> None:
    parts = [{"type": "text", "text": "A zebra."}, {"type": "refusal", "refusal": "no"}]
    (found,) = searched(FIRST, ("assistant", parts), FOLLOW_UP)
    assert found.text == "When?\nWhat is a quagga?\nA zebra."


def test_nothing_to_search_beside() -> None:
    assert searched(FIRST, ANSWER, FOLLOW_UP, weights=FollowUpWeights(0, 0)) == ()
    assert searched(FIRST, ANSWER, ("user", "")) == ()
    assert searched(ANSWER) == ()


@pytest.mark.parametrize(
    ("prompt", "tail"),
    [
        ("", ""),
        (" \n Why?\t", "Why?"),
        ("a" * TAIL_CHARACTERS, "a" * TAIL_CHARACTERS),
        ("x " + "a" * TAIL_CHARACTERS, "a" * TAIL_CHARACTERS),
        ("xa " + "a" * (TAIL_CHARACTERS - 1), "a" * (TAIL_CHARACTERS - 1)),
        ("cut\nwhole " + "a" * (TAIL_CHARACTERS - 7), "whole " + "a" * (TAIL_CHARACTERS - 7)),
        ("cut whole " + "a" * (TAIL_CHARACTERS - 6), "whole " + "a" * (TAIL_CHARACTERS - 6)),
        ("one two " + "a" * (TAIL_CHARACTERS - 2), "a" * (TAIL_CHARACTERS - 2)),
    ],
)
def test_the_tail_of_a_prompt(prompt: str, tail: str) -> None:
    assert tail_of(prompt) == tail


def test_the_tail_of_a_prompt_without_spaces() -> None:
    assert 0 < len(tail_of("a" * 5000)) <= TAIL_CHARACTERS + 1

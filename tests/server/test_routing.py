"""routing: which requests are simple, one reason a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from server.routing import Rule, Size, choose
from server.settings import RoutingSettings
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

SETTINGS = RoutingSettings(small="s", large="l")
RULE = Rule(**SETTINGS.model_dump())
USER = {"role": "user", "content": "How many days may a loan last?"}
ANSWER = {"role": "assistant", "content": "Thirty."}
FUNCTION = {"type": "function", "function": {"name": "f"}}
FILE_SEARCH = {"type": "file_search", "vector_store_ids": ["a"]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def request(content: Any = USER["content"], **fields: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    return ChatRequest.model_validate(body)


def reason(content: Any = USER["content"], rule: Rule = RULE, **fields: Any) -> str:
    return choose(request(content, **fields), None, rule).reason


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [FILE_SEARCH]},
        {"response_format": {"type": "text"}},
        {"max_tokens": 512},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"content": [{"type": "text", "text": "What is it?"}]},
        {"content": "Whyever is no word of ours; the catalog's is: none"},
        {"content": "From page 3 (the second): what import duty is due - 5% or 6%?"},
    ],
)
def test_simple_requests_go_to_the_small_model(fields: dict[str, Any]) -> None:
    route = choose(request(**fields), None, RULE)
    assert (route.size, route.reason, route.model, route.other) == ("small", "simple", "s", "l")


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("tools", {"tools": [FILE_SEARCH, FUNCTION]}),
        ("tools", {"messages": [USER, ANSWER, {"role": "tool", "content": "7"}]}),
        ("structured", {"response_format": {"type": "json_object"}}),
        ("structured", {"structured_outputs": {"choice": ["a"]}}),
        ("structured", {"guided_json": {}}),
        ("media", {"content": [{"type": "text", "text": "What is it?"}, IMAGE]}),
        ("media", {"content": [{"image_url": "data:image/png;base64,AA=="}]}),
        ("long_answer", {"max_tokens": 513}),
        ("long_answer", {"max_completion_tokens": 513, "max_tokens": 1}),
        ("many_turns", {"messages": [USER, ANSWER] * 3 + [USER]}),
        ("long_prompt", {"messages": [{"role": "system", "content": "x" * 8000}, USER]}),
        ("long_question", {"content": "x" * 301}),
        ("code", {"content": "What is `None` here?"}),
        ("code", {"content": "```\nx\n```"}),
        ("code", {"content": "if (a) {\n  b\n}"}),
        ("code", {"content": "What does main() do?"}),
        ("code", {"content": "Is a == b?"}),
        ("words", {"content": "WHY is it so?"}),
        ("words", {"content": "Tell me step by step."}),
    ],
)
def test_what_is_not_simple_goes_to_the_large_model(why: str, fields: dict[str, Any]) -> None:
    route = choose(request(**fields), None, RULE)
    assert (route.size, route.reason, route.model, route.other) == ("large", why, "l", "s")


@pytest.mark.parametrize("size", get_args(Size))
def test_the_client_s_choice_wins(size: Size) -> None:
    for fields in ({}, {"tools": [FUNCTION]}):
        route = choose(request(**fields), size, RULE)
        assert (route.size, route.reason) == (size, "requested")
        assert route.model == {"small": "s", "large": "l"}[size]


def test_falling_back_is_going_to_the_other_one() -> None:
    route = choose(request(), None, RULE).fallen_back()
    assert (route.size, route.reason, route.model, route.other) == ("large", "fallback", "l", "s")


def test_every_number_is_a_setting() -> None:
    def rule(**changes: Any) -> Rule:
        return Rule(**{**SETTINGS.model_dump(), **changes})

    assert reason(rule=rule(max_question_characters=5)) == "long_question"
    assert reason(rule=rule(max_prompt_characters=5)) == "long_prompt"
    assert reason(rule=rule(max_turns=0)) == "many_turns"
    assert reason(rule=rule(max_answer_tokens=1), max_tokens=2) == "long_answer"
    assert reason(rule=rule(words=("days",))) == "words"
    assert reason("Why?", rule=rule(words=())) == "simple"


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("simple", {"prompt": USER["content"]}),
        ("simple", {"prompt": [1, 2, 3]}),
        ("simple", {"prompt": None, "max_tokens": 512}),
        ("long_answer", {"prompt": "Hello", "max_tokens": 513}),
        ("structured", {"prompt": "Hello", "guided_json": {}}),
        ("many_turns", {"prompt": ["Hello"] * (RULE.max_turns + 1)}),
        ("long_prompt", {"prompt": "x " * RULE.max_prompt_characters}),
        ("long_prompt", {"prompt": [[7] * RULE.max_prompt_characters]}),
        ("code", {"prompt": ["Hello", "def f(): return g()"]}),
        ("words", {"prompt": "Explain the loan."}),
    ],
)
def test_a_text_completion_by_the_same_rule(why: str, fields: dict[str, Any]) -> None:
    assert choose(CompletionRequest.model_validate(fields), None, RULE).reason == why


@pytest.mark.parametrize("word", ["c++", "why?", "step by step"])
def test_words_may_begin_and_end_with_signs(word: str) -> None:
    rule = replace(RULE, words=(word,))
    assert reason(f"Well, {word.upper()} then", rule) == "words"
    assert reason(f"Well, x{word}x then", rule) == "simple"

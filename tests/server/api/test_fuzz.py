"""Bodies that hypothesis makes, over HTTP: whatever comes, an answer comes back, and it is no 500."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.api.bench import ROUTE, Running
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_chat import payloads
from tests.server.api.test_completions import ROUTE as TEXT_ROUTE

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
STORES = st.lists(st.sampled_from(["docs", "empty", "twin", "no-such", ""]), max_size=3)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What fits, and now and then what does not: bodies that are all wrong end at the first check."""
    return st.one_of(strategy, strategy, strategy, strategy, strategy, strategy, ODD)


TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": mostly(TEXT)}),
    st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": mostly(st.just({"url": "http://x/y.png"}))}
    ),
    st.dictionaries(st.sampled_from(["type", "text", "refusal", ""]), ODD, max_size=3),
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": mostly(
            st.sampled_from(["user", "user", "system", "assistant", "tool", "developer"])
        ),
        "content": mostly(st.one_of(TEXT, st.none(), st.lists(PART, max_size=3))),
    },
    optional={"annotations": ODD, "tool_calls": ODD, "name": ODD, "refusal": ODD},
)
RANKING = st.fixed_dictionaries(
    {}, optional={"score_threshold": mostly(st.floats(0, 1)), "ranker": ODD}
)
SEARCH_TOOL = st.fixed_dictionaries(
    {"type": st.just("file_search"), "vector_store_ids": mostly(STORES)},
    optional={"max_num_results": mostly(st.integers(1, 50)), "ranking_options": mostly(RANKING)},
)
FUNCTION = st.fixed_dictionaries(
    {"type": st.just("function"), "function": mostly(st.just({"name": "f", "parameters": {}}))}
)
RAG = st.fixed_dictionaries(
    {},
    optional={
        "enabled": mostly(st.booleans()),
        "vector_store_ids": mostly(STORES),
        "max_num_results": mostly(st.integers(1, 50)),
        "ranking_options": mostly(RANKING),
        "max_context_tokens": mostly(st.integers(0, 5000)),
        "include_text": mostly(st.booleans()),
        "on_error": mostly(st.sampled_from(["skip", "fail"])),
        "on_empty": mostly(st.sampled_from(["answer", "refuse"])),
        "footer": mostly(st.booleans()),
        "filters": ODD,
        "dry_run": mostly(st.sampled_from([True, False, False, False])),
    },
)
BODY = st.fixed_dictionaries(
    {"messages": mostly(st.lists(MESSAGE, min_size=1, max_size=4))},
    optional={
        "model": mostly(
            st.sampled_from(["gpt-4o-mini", "scripted", "scripted@docs", "x@none", "@"])
        ),
        "stream": mostly(st.booleans()),
        "stream_options": mostly(st.fixed_dictionaries({"include_usage": ODD})),
        "max_tokens": mostly(st.integers(0, 10_000)),
        "max_completion_tokens": mostly(st.integers(1, 100)),
        "n": mostly(st.integers(1, 3)),
        "logprobs": ODD,
        "stop": ODD,
        "tools": mostly(st.lists(st.one_of(SEARCH_TOOL, FUNCTION, ODD), max_size=3)),
        "tool_choice": ODD,
        "parallel_tool_calls": ODD,
        "cache_salt": ODD,
        "rag": mostly(RAG),
    },
)


TOKENS = st.lists(st.integers(0, 50_000), max_size=4)
TEXT_BODY = st.fixed_dictionaries(
    {"prompt": mostly(st.one_of(TEXT, TEXT, st.lists(TEXT, max_size=3), TOKENS, st.lists(TOKENS)))},
    optional={
        "model": mostly(
            st.sampled_from(["scripted", "scripted@docs", "gpt-4@docs", "scripted@empty", "x@none"])
        ),
        "stream": mostly(st.booleans()),
        "stream_options": mostly(st.fixed_dictionaries({"include_usage": ODD})),
        "max_tokens": mostly(st.integers(0, 10_000)),
        "n": mostly(st.integers(1, 3)),
        "echo": mostly(st.booleans()),
        "suffix": ODD,
        "logprobs": ODD,
        "best_of": ODD,
        "messages": ODD,
        "prompt_embeds": ODD,
        "cache_salt": ODD,
        "rag": mostly(RAG),
    },
)


def check(running: Running, body: dict[str, Any], route: str = ROUTE) -> None:
    """An answer or a 4xx in OpenAI's envelope; a stream ends as streams end."""
    response: httpx.Response = running.client.post(route, json=body)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error_of(response)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert payloads(response.text)
        assert response.text.endswith("data: [DONE]\n\n")
    elif (answer := response.json())["object"] == "rag.receipt":
        assert body["rag"]["dry_run"] is True
    else:
        assert answer["choices"]


# The server is shared by the examples on purpose: what one leaves behind, the next must not feel.
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=200, suppress_health_check=SHARED, derandomize=True)
@given(BODY)
def test_chat_bodies(shared: Running, body: dict[str, Any]) -> None:
    check(shared, body)


@settings(max_examples=200, suppress_health_check=SHARED, derandomize=True)
@given(TEXT_BODY)
def test_text_bodies(shared: Running, body: dict[str, Any]) -> None:
    check(shared, body, TEXT_ROUTE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, suppress_health_check=SHARED)
@given(BODY)
def test_many_chat_bodies(shared: Running, body: dict[str, Any]) -> None:
    check(shared, body)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, suppress_health_check=SHARED)
@given(TEXT_BODY)
def test_many_text_bodies(shared: Running, body: dict[str, Any]) -> None:
    check(shared, body, TEXT_ROUTE)

"""With retrieval off the bodies are bare vLLM's, byte for byte; with it on, every vLLM feature still works."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.engine.real import FACT, QUESTION, RealServer

pytestmark = pytest.mark.engine

SCHEMA = {
    "type": "object",
    "properties": {"days": {"enum": [365, 417]}, "item": {"type": "string", "maxLength": 12}},
    "required": ["days", "item"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "record_days",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"days": {"enum": [365, 417]}},
                "required": ["days"],
            },
        },
    }
]
FORCED = {"type": "function", "function": {"name": "record_days"}}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "days", "schema": SCHEMA},
        },
        "max_tokens": 48,
    },
    "forced_tool": {"tools": TOOLS, "tool_choice": FORCED, "max_tokens": 96},
    "required_tool": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 96},
    "auto_tool": {"tools": TOOLS, "tool_choice": "auto"},
    "n": {"n": 2, "temperature": 0.8, "seed": 7},
    "stop": {"stop": ["e"], "max_tokens": 24},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "seed": {"temperature": 0.9, "seed": 11},
}
STREAMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    "streamed_usage": {"stream": True, "stream_options": {"include_usage": True}},
}
OFF = {"rag": {"enabled": False}}
#: Without usage a stream differs from one with it in its last chunk alone: one feature shows that.
CASES = [
    (feature, stream)
    for feature in FEATURES
    for stream in STREAMS
    if stream != "streamed" or feature == "plain"
]


def body_of(feature: str, stream: str) -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 8,
        "temperature": 0,
        **FEATURES[feature],
        **STREAMS[stream],
    }


def bare(real: RealServer, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{real.bare_url}/v1/chat/completions", json=body, timeout=120)


def normal(text: str) -> str:
    """Ids and times out, nothing else."""
    text = re.sub(r'"id":"chatcmpl-[^"]+"', '"id":"chatcmpl-X"', text)
    text = re.sub(r'"id":"(chatcmpl-tool|call)[-_][^"]+"', '"id":"call-X"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


def ordered(text: str) -> list[str]:
    """A body's events choice by choice: with `n` above 1 the engine interleaves them as they come."""
    blocks = text.split("\n\n")
    return sorted(blocks, key=lambda block: '"choices":[{"index":1' in block)


def events(text: str) -> list[dict[str, Any]]:
    assert text.endswith("data: [DONE]\n\n")
    blocks = text.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.mark.parametrize(("feature", "stream"), CASES)
def test_off_is_bare_vllm(real: RealServer, feature: str, stream: str) -> None:
    body = body_of(feature, stream)
    ours, theirs = real.post({**body, **OFF}), bare(real, body)
    assert theirs.status_code == ours.status_code == 200, ours.text
    assert ordered(normal(ours.text)) == ordered(normal(theirs.text))
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert ours.headers["x-rag-status"] == "off"


def test_off_under_a_foreign_name_differs_in_the_name_alone(real: RealServer) -> None:
    for stream in STREAMS:
        body = body_of("plain", stream)
        ours, theirs = real.post({**body, **OFF, "model": "gpt-4o-mini"}), bare(real, body)
        renamed = theirs.text.replace('"model":"SmolLM2-135M-Instruct"', '"model":"gpt-4o-mini"')
        assert normal(ours.text) == normal(renamed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"}, {"max_tokens": -1}, {"tool_choice": "auto"}, {"logprobs": 3},
        {"response_format": {"type": "json_schema"}}, {"tools": [{"type": "lamp"}]},
        {"messages": [{"role": "user", "content": "long " * 5000}]}, {"n": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
@pytest.mark.parametrize("rag", [{}, OFF], ids=["grounded", "off"])
def test_refusals_are_vllms_in_our_envelope(
    real: RealServer, wrong: dict[str, Any], rag: dict[str, Any]
) -> None:
    body = {**body_of("plain", "whole"), **wrong}
    ours, theirs = real.post({**body, **rag}), bare(real, body)
    assert ours.status_code == theirs.status_code == 400, (ours.text, theirs.text)
    error = ours.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None or isinstance(error["code"], str)


@pytest.mark.parametrize("rag", [{}, OFF], ids=["grounded", "off"])
def test_a_schema_that_vllm_refuses_late_is_a_status_on_streams_too(
    real: RealServer, rag: dict[str, Any]
) -> None:
    """Bare vLLM checks the schema when its stream first runs, and says so in band under 200."""
    schema = {"type": "object", "properties": {"day": {"type": "no such type"}}}
    wrong = {"type": "json_schema", "json_schema": {"name": "days", "schema": schema}}
    body = {**body_of("plain", "streamed"), "response_format": wrong}
    theirs = bare(real, body)
    assert theirs.status_code == 200
    assert '"error"' in theirs.text
    ours = real.post({**body, **rag})
    assert ours.status_code == 400, ours.text
    assert ours.json()["error"]["type"] == "invalid_request_error"


def test_over_long_conversation_has_openais_code(real: RealServer) -> None:
    body = body_of("plain", "whole")
    body["messages"] = [{"role": "user", "content": "long " * 5000}]
    error = real.post(body).json()["error"]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("feature", "stream"), CASES)
def test_features_work_grounded(real: RealServer, feature: str, stream: str) -> None:
    body = body_of(feature, stream)
    response = real.post(body)
    assert response.status_code == 200, response.text
    assert response.headers["x-rag-status"] == "hit"
    chunks = [response.json()] if stream == "whole" else events(response.text)
    assert chunks[0]["rag"]["search_results"][0]["data"][0]["filename"] == "lamp.md"
    assert ("usage" in chunks[-1]) == (stream != "streamed")
    choices = gather(chunks)
    CHECKS[feature](choices)
    if feature in ("seed", "n"):
        again = real.post(body)
        repeated = [again.json()] if stream == "whole" else events(again.text)
        assert texts(gather(repeated)) == texts(choices)


def gather(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choices of whole or streamed answers in one form."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            entry = found.setdefault(
                choice["index"],
                {"content": "", "arguments": "", "name": "", "logprobs": [], "notes": []},
            )
            part = choice.get("message") or choice.get("delta")
            entry["content"] += part.get("content") or ""
            entry["notes"] += part.get("annotations") or []
            for call in part.get("tool_calls") or ():
                entry["name"] += call["function"].get("name") or ""
                entry["arguments"] += call["function"].get("arguments") or ""
            entry["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
            entry["finish"] = choice.get("finish_reason") or entry.get("finish")
    return [found[index] for index in sorted(found)]


def texts(choices: list[dict[str, Any]]) -> list[str]:
    return [choice["content"] + choice["arguments"] for choice in choices]


def check_schema(choices: list[dict[str, Any]]) -> None:
    assert isinstance(json.loads(choices[0]["content"])["days"], int)


def check_tool(choices: list[dict[str, Any]]) -> None:
    assert choices[0]["name"] == "record_days"
    assert isinstance(json.loads(choices[0]["arguments"])["days"], int)
    assert choices[0]["notes"] == []


def check_text(choices: list[dict[str, Any]]) -> None:
    assert choices[0]["content"]
    assert choices[0]["finish"] in ("length", "stop")
    assert choices[0]["notes"][0]["type"] == "url_citation"


def check_n(choices: list[dict[str, Any]]) -> None:
    assert len(choices) == 2
    for choice in choices:
        check_text([choice])


def check_stop(choices: list[dict[str, Any]]) -> None:
    assert "e" not in choices[0]["content"]
    assert choices[0]["finish"] == "stop"


def check_logprobs(choices: list[dict[str, Any]]) -> None:
    tokens = "".join(entry["token"] for entry in choices[0]["logprobs"])
    assert tokens == choices[0]["content"]  # never held back, never misaligned
    assert all(len(entry["top_logprobs"]) == 2 for entry in choices[0]["logprobs"])


CHECKS = {
    "plain": check_text,
    "json_schema": check_schema,
    "forced_tool": check_tool,
    "required_tool": check_tool,
    "auto_tool": check_text,
    "n": check_n,
    "stop": check_stop,
    "logprobs": check_logprobs,
    "seed": check_text,
}


def test_grounded_answer_is_bare_vllms_on_the_same_prompt(real: RealServer) -> None:
    """Grounding changes the prompt and nothing else: bare vLLM on that prompt writes the same words."""
    body = body_of("plain", "whole")
    ours = real.post({**body, "return_prompt_text": True}).json()
    assert FACT in ours["prompt_text"]
    theirs = httpx.post(
        f"{real.bare_url}/v1/completions",
        json={
            "model": body["model"],
            "prompt": ours["prompt_text"],
            "max_tokens": 8,
            "temperature": 0,
            "add_special_tokens": False,
        },
        timeout=120,
    ).json()
    assert theirs["usage"]["prompt_tokens"] == ours["usage"]["prompt_tokens"]
    assert theirs["choices"][0]["text"] == ours["choices"][0]["message"]["content"]

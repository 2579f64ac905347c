"""weave, of text completions: the engine's chunks behind a head of ours, with sources in the first one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from server import weave
from server.receipts import Receipt, summed
from server.weave_text import TextWeaver, weave_text
from tests.server.test_weave import receipt

HEAD = {"id": "cmpl-ours", "object": "text_completion", "created": 7, "model": "gpt-4o-mini"}
ENGINE_HEAD = {"id": "cmpl-x", "object": "text_completion", "created": 5, "model": "m"}


def chunk(text: str | None, index: int = 0, finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    return weave.event({**ENGINE_HEAD, "choices": [choice], **extra})


def weaver(made: Receipt, choices: int = 1, **fields: Any) -> TextWeaver:
    head: dict[str, Any] = {"completion_id": "cmpl-ours", "created": 7, "model": "gpt-4o-mini"}
    return TextWeaver(made, **head, choices=choices, **fields)


def run(events: list[bytes], made: Receipt, **fields: Any) -> list[dict[str, Any]]:
    woven = weaver(made, **fields)
    out = woven.opening({"embed": 1.5}) + b"".join(woven.feed(event) for event in events)
    payloads = [json.loads(event[6:]) for event in out.split(b"\n\n")[:-1] if event != b"data: [DONE]"]  # fmt: skip
    for payload in payloads:
        assert {key: payload[key] for key in HEAD} == HEAD
    return payloads


def texts(payloads: list[dict[str, Any]], choices: int) -> list[str]:
    said = [""] * choices
    for payload in payloads:
        for choice in payload["choices"]:
            said[choice["index"]] += choice["text"] or ""
    return said


def test_the_opening_alone_has_the_sources() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    last = weave.event({**ENGINE_HEAD, "choices": [], "usage": usage})
    first, *rest = run([chunk("a"), chunk("b", finish="stop"), last, weave.DONE], receipt())
    assert first["rag"]["status"] == "hit"
    assert "cited" not in first["rag"]
    assert first["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]
    assert not any("rag" in payload for payload in rest)
    assert rest[-1]["usage"] == usage


def test_what_the_engine_said_stays_byte_for_byte() -> None:
    raw = chunk("é [1]", logprobs={"tokens": ["é"]}, finish="length")
    woven = weaver(receipt()).feed(raw)
    assert woven.partition(b'"choices":')[2] == raw.partition(b'"choices":')[2]


@pytest.mark.parametrize("first", [{"choices": []}, {**ENGINE_HEAD, "fingerprint": "f" * 600}])
def test_another_order_of_fields_is_read_all_the_same(first: dict[str, Any]) -> None:
    choices = [{"index": 0, "text": "a"}]
    raw = weave.event({**first, **ENGINE_HEAD, "choices": choices})
    woven = json.loads(weaver(receipt()).feed(raw)[6:])
    assert (woven["id"], woven["choices"]) == ("cmpl-ours", choices)


def test_errors_and_the_end_pass() -> None:
    error = b'data: {"error":{"message":"x"}}\n\n'
    assert weaver(receipt()).feed(error) == error
    assert weaver(receipt()).feed(weave.DONE) == weave.DONE


@pytest.mark.parametrize("echoed", [False, True])
def test_each_choice_ends_with_the_footer_of_its_prompt(echoed: bool) -> None:
    one, two = receipt(1, footer=True), receipt(2, footer=True, found=(1,))
    made = replace(summed(one, [one, two]), footer=True)
    prompts = ("See [1]. ", "See [2] and [1]. ") if echoed else ("", "")
    events = []
    for index in range(4):
        events += [chunk(f"{prompts[index // 2]}a", index), chunk(None, index)]
    for index in range(4):
        events.append(chunk("b", index, "stop"))
    said = texts(run(events, made, choices=4, echoed=prompts), 4)
    assert [text.partition("\n\n")[0] for text in said] == [
        f"{prompts[index // 2]}ab" for index in range(4)
    ]
    lists = [text.partition("Sources:\n")[2] for text in said]
    assert lists[0] == lists[1]
    assert "f1.md" in lists[0]
    # The second prompt found its second source alone, and what is echoed cites nothing.
    assert lists[2] == lists[3]
    assert "f2.md" in lists[2]
    assert "f1.md" not in lists[2]


@pytest.mark.parametrize(
    ("texts", "cited"), [(["none", "none"], False), (["none", "so [2]"], True), (["so [2]", ""], False)]
)  # fmt: skip
def test_a_whole_answer_cites_the_sources_of_its_own_prompt(texts: list[str], cited: bool) -> None:
    made = summed(receipt(1), [receipt(1), receipt(2)])
    choices = [{"index": i, "text": text} for i, text in enumerate(texts)]
    body = orjson.dumps({**ENGINE_HEAD, "choices": choices})
    answer = weave_text(body, made, model="gpt-4o-mini", timings_ms={})
    assert answer["rag"]["cited"] is cited
    assert answer["model"] == "gpt-4o-mini"
    assert [choice["text"] for choice in answer["choices"]] == texts


def test_no_text_is_none() -> None:
    body = orjson.dumps({**ENGINE_HEAD, "choices": [{"index": 0, "text": None}]})
    answer = weave_text(body, receipt(1), model="m", timings_ms={})
    assert answer["rag"]["cited"] is False


def test_keep_alive_is_a_chunk_without_text() -> None:
    payload = json.loads(weaver(receipt()).keep_alive()[6:])
    assert payload["choices"][0]["text"] == ""
    assert "rag" not in payload


def test_a_refusal_is_a_text_completion() -> None:
    raw = weave.refusal(
        "No.", chat=False, completion_id="cmpl-ours", created=7, model="m", choices=1
    )
    made = json.loads(raw)
    assert (made["object"], made["choices"][0]["text"]) == ("text_completion", "No.")

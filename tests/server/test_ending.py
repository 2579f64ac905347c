"""ending: what a stream that is stopped still has to say, from the events that went before."""

from __future__ import annotations

from typing import Any

import orjson

from server import weave
from server.ending import Ending


def chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    head = {"id": "chatcmpl-e", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    return weave.event({**head, "choices": list(choices), **fields})


def choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def ending(choices: int = 1, *, chat: bool = True) -> Ending:
    return Ending(chat=chat, choices=choices, completion_id="chatcmpl-o", created=1, model="ours")


def read(events: list[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(raw.removeprefix(weave.DATA)) for raw in events]


def test_before_anything_came_the_answer_is_empty() -> None:
    role, last = read(ending().last())
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["choices"][0]["finish_reason"] is None
    assert last == {
        "id": "chatcmpl-o",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "ours",
        "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
    }


def test_only_choices_that_go_on_are_ended() -> None:
    made = ending(3)
    made.feed(chunk(choice(0, {"role": "assistant", "content": ""})))
    made.feed(chunk(choice(1, {"role": "assistant", "content": ""})))
    made.feed(chunk(choice(0, {"content": "all"}, "stop")))
    made.feed(chunk(choice(1, {"content": "ha"}), choice(1, {"content": "lf"})))
    events = read(made.last())
    told = [(e["choices"][0]["index"], e["choices"][0]["finish_reason"]) for e in events]
    assert told == [(1, "length"), (2, None), (2, "length")]
    assert {(e["id"], e["created"], e["model"]) for e in events} == {("chatcmpl-e", 7, "m")}
    assert made.texts == ["all", "half", ""]


def test_what_counts_as_said() -> None:
    made = ending()
    made.feed(chunk(choice(0, {"reasoning": "hm "})))
    call = {"index": 0, "id": "c", "function": {"name": "look ", "arguments": '{"a'}}
    made.feed(chunk(choice(0, {"tool_calls": [call]})))
    made.feed(chunk(choice(0, {"tool_calls": [{"index": 0, "function": {"arguments": '":1'}}]})))
    assert made.texts == ['hm look {"a":1']


def test_text_completions() -> None:
    made = ending(2, chat=False)
    made.feed(weave.event({"choices": [{"index": 1, "text": "so", "finish_reason": "stop"}]}))
    (last,) = read(made.last())
    assert last["object"] == "text_completion"
    assert last["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    ]
    assert made.texts == ["", "so"]


def test_usage_is_known_to_have_come() -> None:
    made = ending()
    assert not made.has_usage
    (told,) = read([made.usage(5, 2)])
    assert (told["choices"], told["usage"]["total_tokens"]) == ([], 7)
    made.feed(chunk(usage={}))
    made.feed(weave.DONE)
    assert made.has_usage

"""weave: the engine's bytes and a receipt become the client's bytes, in WIRE section 5's order."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from retrieval.types import Candidate, Passage
from server import weave
from server.receipts import Receipt

ID = "chatcmpl-ours"
HEAD = {"id": ID, "object": "chat.completion.chunk", "created": 7, "model": "gpt-4o-mini"}
ENGINE_HEAD = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 5, "model": "m"}


def link(passage: Passage) -> str:
    return f"http://host/{passage.id}"


def receipt(count: int = 2, **fields: Any) -> Receipt:
    sources = tuple(
        Candidate(Passage(f"file-{i}", "ab" * 32, i, filename=f"f{i}.md", text="t"), 0.5)
        for i in range(1, count + 1)
    )
    return Receipt("hit", link, question="Why?", sources=sources, **fields)


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    choice |= extra.pop("choice", {})
    return weave.event({**ENGINE_HEAD, "choices": [choice], **extra})


def run(
    events: list[bytes], made: Receipt | None = None, choices: int = 1
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The raw events that the client gets, and their payloads (without `[DONE]`)."""
    weaver = weave.Weaver(
        made or receipt(), completion_id=ID, created=7, model="gpt-4o-mini", choices=choices
    )
    out = weaver.opening({"embed": 1.5}) + b"".join(weaver.feed(event) for event in events)
    assert out.endswith(b"\n\n")
    raw = [event + b"\n\n" for event in out.split(b"\n\n")[:-1]]
    assert all(event.startswith(b"data: ") for event in raw)
    payloads = [json.loads(event[6:]) for event in raw if event != weave.DONE]
    for payload in payloads:
        assert {key: payload[key] for key in HEAD} == HEAD
    return raw, payloads


def kinds(payloads: list[dict[str, Any]]) -> list[str]:
    """What each chunk is, in one word and its choice."""
    return [kind(payload) for payload in payloads]


def kind(payload: dict[str, Any]) -> str:
    if not payload["choices"]:
        return "usage"
    (choice,) = payload["choices"]
    delta = choice["delta"]
    if choice["finish_reason"] is not None:
        assert delta == {}, "no content in the finish chunk"
        return f"finish{choice['index']}"
    for name in ("role", "annotations", "tool_calls", "reasoning", "content"):
        if name in delta:
            return f"{name}{choice['index']}"
    raise AssertionError(payload)


ROLE = chunk({"role": "assistant", "content": ""})
USAGE = weave.event({**ENGINE_HEAD, "choices": [], "usage": {"total_tokens": 9}})
PLAIN = [
    ROLE,
    chunk({"content": "Yes 🙂"}),
    chunk({"content": " [2]"}),
    chunk({"content": "."}, finish="stop"),
]


def test_the_order() -> None:
    raw, payloads = run([*PLAIN, USAGE, weave.DONE])
    assert kinds(payloads) == [
        *("role0", "content0", "content0", "content0", "annotations0", "finish0", "usage")
    ]
    assert raw[-1] == weave.DONE
    assert payloads[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert payloads[0]["rag"]["status"] == "hit"
    assert payloads[0]["rag"]["timings_ms"] == {"embed": 1.5}
    assert "cited" not in payloads[0]["rag"]
    assert all("rag" not in payload for payload in payloads[1:])
    assert payloads[-1]["usage"] == {"total_tokens": 9}


def test_annotations_count_from_0_in_code_points() -> None:
    events = [ROLE, chunk({"content": "🙂 [2][1]"}), chunk({"content": " [1]"}, finish="stop")]
    _, payloads = run(events)
    (found,) = [
        p["choices"][0]["delta"]["annotations"] for p in payloads if kind(p) == "annotations0"
    ]
    assert [item["index"] for item in found] == [0, 1, 2]
    spans = [item["url_citation"] for item in found]
    assert [(s["start_index"], s["end_index"], s["title"]) for s in spans] == [
        *((2, 5, "f2.md"), (5, 8, "f1.md"), (9, 12, "f1.md"))
    ]


def test_a_marker_split_over_tokens_is_one_citation() -> None:
    events = [
        ROLE,
        *(chunk({"content": part}) for part in "a [1]"),
        chunk({"content": ""}, finish="stop"),
    ]
    _, payloads = run(events)
    (found,) = [
        p["choices"][0]["delta"]["annotations"] for p in payloads if kind(p) == "annotations0"
    ]
    assert [(i["url_citation"]["start_index"], i["url_citation"]["end_index"]) for i in found] == [
        (2, 5)
    ]
    assert kinds(payloads)[-2:] == ["annotations0", "finish0"]


def test_nothing_cited_gives_all_sources_at_the_end() -> None:
    _, payloads = run([ROLE, chunk({"content": "`[1]` no"}, finish="length")])
    found = payloads[-2]["choices"][0]["delta"]["annotations"]
    assert [i["url_citation"]["start_index"] for i in found] == [8, 8]
    assert payloads[-1]["choices"][0]["finish_reason"] == "length"


def test_no_sources_no_annotations_chunk() -> None:
    _, payloads = run(PLAIN, Receipt("miss", link, reason="no_room"))
    assert kinds(payloads) == ["role0", "content0", "content0", "content0", "finish0"]
    assert payloads[0]["rag"]["reason"] == "no_room"


def test_two_choices_each_have_their_own() -> None:
    events = [
        *(chunk({"role": "assistant", "content": ""}, i) for i in range(2)),
        chunk({"content": "a [1]"}, 0),
        chunk({"content": "b [2]"}, 1, finish="stop"),
        chunk({"content": "!"}, 0, finish="length"),
        USAGE,
        weave.DONE,
    ]
    _, payloads = run(events, choices=2)
    assert kinds(payloads) == [
        *("role0", "role1", "content0", "content1", "annotations1", "finish1"),
        *("content0", "annotations0", "finish0", "usage"),
    ]
    assert ["rag" in p for p in payloads] == [True] + [False] * 9
    titles = {
        p["choices"][0]["index"]: p["choices"][0]["delta"]["annotations"][0]["url_citation"][
            "title"
        ]
        for p in payloads
        if kind(p).startswith("annotations")
    }
    assert titles == {0: "f1.md", 1: "f2.md"}


def test_several_choices_in_one_event_are_taken_apart() -> None:
    both = [
        {"index": i, "delta": {"content": f"x[{i + 1}]"}, "finish_reason": "stop"} for i in range(2)
    ]
    _, payloads = run([weave.event({**ENGINE_HEAD, "choices": both})], choices=2)
    expected = [f"{name}{i}" for i in range(2) for name in ("content", "annotations", "finish")]
    assert kinds(payloads) == ["role0", "role1", *expected]


def test_tool_calls_are_passed_on_and_not_annotated() -> None:
    call = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    events = [
        ROLE,
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "[1]"}}]}),
        chunk({"content": ""}, finish="tool_calls"),
        weave.DONE,
    ]
    _, payloads = run(events)
    assert kinds(payloads) == ["role0", "tool_calls0", "tool_calls0", "finish0"]
    assert payloads[1]["choices"][0]["delta"]["tool_calls"] == [call]
    assert payloads[-1]["choices"][0]["finish_reason"] == "tool_calls"


CALL = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
]


def test_a_call_that_begins_in_the_role_chunk() -> None:
    """As OpenAI's streams begin one."""
    events = [
        chunk({"role": "assistant", "content": None, "tool_calls": CALL, "refusal": None}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        chunk({}, finish="tool_calls"),
    ]
    _, payloads = run(events)
    assert kinds(payloads) == ["role0", "tool_calls0", "tool_calls0", "finish0"]
    assert payloads[1]["choices"][0]["delta"] == {"tool_calls": CALL, "refusal": None}


def test_a_role_in_every_chunk_is_said_once() -> None:
    """As Ollama's streams say it."""
    deltas: list[dict[str, Any]] = [
        {"content": "", "reasoning": "hm"},
        {"content": "Yes"},
        {"content": " [1]"},
        {"content": "", "tool_calls": CALL},
    ]
    events = [chunk({"role": "assistant", **delta}) for delta in deltas]
    last = chunk({"role": "assistant", "content": ""}, finish="tool_calls")
    _, payloads = run([*events, last])
    assert kinds(payloads) == [
        *("role0", "reasoning0", "content0", "content0", "tool_calls0", "annotations0", "finish0")
    ]
    assert [payload["choices"][0]["delta"] for payload in payloads[1:5]] == [
        *({"reasoning": "hm"}, {"content": "Yes"}, {"content": " [1]"}, {"tool_calls": CALL})
    ]


def test_a_last_chunk_with_a_role_is_said_without_it() -> None:
    _, payloads = run([chunk({"role": "assistant", "content": "a [1]"}, finish="stop")])
    assert kinds(payloads) == ["role0", "content0", "annotations0", "finish0"]
    assert payloads[1]["choices"][0]["delta"] == {"content": "a [1]"}


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_a_text_beside_a_call_is_annotated_and_has_no_footer(finish: str) -> None:
    events = [ROLE, chunk({"content": "By [1] I look."}), chunk({"tool_calls": CALL})]
    _, payloads = run([*events, chunk({}, finish=finish)], receipt(footer=True))
    assert kinds(payloads) == ["role0", "content0", "tool_calls0", "annotations0", "finish0"]
    (found,) = payloads[-2]["choices"][0]["delta"]["annotations"]
    assert (found["url_citation"]["start_index"], found["url_citation"]["title"]) == (3, "f1.md")


def test_white_space_beside_a_call_is_no_text() -> None:
    _, payloads = run(
        [ROLE, chunk({"content": "\n\n"}), chunk({"tool_calls": CALL}, finish="stop")]
    )
    assert kinds(payloads) == ["role0", "content0", "tool_calls0", "finish0"]


def test_a_forced_call_that_ends_with_stop_is_not_annotated() -> None:
    call = [{"index": 0, "function": {"arguments": "{}"}}]
    _, payloads = run(
        [ROLE, chunk({"tool_calls": call}), chunk({"tool_calls": call}, finish="stop")]
    )
    assert kinds(payloads) == ["role0", "tool_calls0", "tool_calls0", "finish0"]


def test_logprobs_stay_with_their_tokens() -> None:
    logprobs = {"content": [{"token": "!", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
    events = [
        ROLE,
        chunk({"content": "a [1]"}, choice={"logprobs": logprobs}),
        chunk({"content": "!"}, finish="stop", choice={"logprobs": logprobs, "stop_reason": "!"}),
    ]
    _, payloads = run(events)
    assert kinds(payloads) == ["role0", "content0", "content0", "annotations0", "finish0"]
    assert [p["choices"][0].get("logprobs") for p in payloads] == [
        None,
        logprobs,
        logprobs,
        None,
        None,
    ]
    assert payloads[2]["choices"][0]["delta"] == {"content": "!"}
    assert "stop_reason" not in payloads[2]["choices"][0]
    assert payloads[-1]["choices"][0]["stop_reason"] == "!"


def test_logprobs_without_text_in_the_last_chunk_are_kept() -> None:
    logprobs = {"content": [{"token": "<eos>"}]}
    _, payloads = run([ROLE, chunk({}, finish="stop", choice={"logprobs": logprobs})])
    assert payloads[1]["choices"][0]["logprobs"] == logprobs
    assert payloads[1]["choices"][0]["finish_reason"] is None


def test_continuous_usage_is_on_every_chunk_of_the_engines() -> None:
    usage = {"usage": {"completion_tokens": 1}}
    events = [
        chunk({"role": "assistant", "content": ""}, **usage),
        chunk({"content": "a"}, **usage),
        chunk({"content": "b"}, finish="stop", **usage),
    ]
    _, payloads = run(events)
    assert kinds(payloads) == [
        "role0",
        "content0",
        "content0",
        "content0",
        "annotations0",
        "finish0",
    ]
    assert ["usage" in p for p in payloads] == [False, True, True, True, False, True]


def test_what_a_role_chunk_carries_beside_the_role_is_kept() -> None:
    events = [
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2]),
        chunk({"content": "a"}),
    ]
    _, payloads = run(events)
    assert payloads[1]["prompt_token_ids"] == [1, 2]
    assert payloads[1]["choices"][0]["delta"] == {"content": ""}


def test_logprobs_beside_a_role_are_kept() -> None:
    logprobs = {"content": [{"token": "<think>"}]}
    _, payloads = run([chunk({"role": "assistant", "content": ""}, choice={"logprobs": logprobs})])
    assert payloads[1]["choices"][0]["logprobs"] == logprobs


def test_a_role_chunk_with_content_is_not_lost() -> None:
    _, payloads = run([chunk({"role": "assistant", "content": "Pre"}), chunk({"content": "fill"})])
    assert [p["choices"][0]["delta"]["content"] for p in payloads] == ["", "Pre", "fill"]


def test_reasoning_is_no_answer_text() -> None:
    events = [ROLE, chunk({"reasoning": "look at [1]"}), chunk({"content": "a [2]"}, finish="stop")]
    _, payloads = run(events)
    assert payloads[1]["choices"][0]["delta"] == {"reasoning": "look at [1]"}
    (found,) = payloads[-2]["choices"][0]["delta"]["annotations"]
    assert (found["url_citation"]["title"], found["url_citation"]["start_index"]) == ("f2.md", 2)


@pytest.mark.parametrize("name", ["m", 'we"ird,"choices":\\é', "x" * 600])
def test_content_chunks_keep_the_engines_bytes_behind_a_new_head(name: str) -> None:
    """Floats, escapes and spacing of the engine's survive: the tail is never parsed and written again."""
    tail = b'[{"index": 0, "delta": {"content": "\\u00e9 1"}, "x": 1.10, "finish_reason": null}], "y": 1e2}\n\n'
    head = orjson.dumps({**ENGINE_HEAD, "model": name})[:-1]
    raw, payloads = run([ROLE, weave.DATA + head + b',"choices":' + tail])
    assert payloads[1]["choices"][0]["delta"]["content"] == "é 1"
    if len(name) < 500:
        assert raw[1] == weave.DATA + orjson.dumps(HEAD)[:-1] + b',"choices":' + tail


def test_the_footer_comes_after_the_text_and_moves_no_offset() -> None:
    _, payloads = run(PLAIN, receipt(footer=True))
    assert kinds(payloads)[-3:] == ["content0", "annotations0", "finish0"]
    tail = payloads[-3]["choices"][0]["delta"]["content"]
    assert tail.startswith("\n\nSources:\n[1] f1.md: http://host/")
    (found,) = payloads[-2]["choices"][0]["delta"]["annotations"]
    assert (found["url_citation"]["start_index"], found["url_citation"]["end_index"]) == (6, 9)


def test_keep_alive_is_an_empty_delta() -> None:
    weaver = weave.Weaver(receipt(), completion_id=ID, created=7, model="gpt-4o-mini", choices=2)
    payload = json.loads(weaver.keep_alive().removeprefix(b"data: "))
    assert payload == {
        **HEAD,
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}],
    }


@pytest.mark.parametrize(
    ("code", "expected"), [(500, "engine_error"), ("oom", "oom"), (None, "engine_error")]
)
def test_the_error_event(code: Any, expected: str) -> None:
    raw = weave.event({"error": {"message": "gone", "type": "InternalServerError", "code": code}})
    made = weave.error_event(raw)
    assert made.endswith(b"\n\n")
    assert json.loads(made[6:]) == {
        "error": {"message": "gone", "type": "server_error", "param": None, "code": expected}
    }


# --- whole answers ----------------------------------------------------------------------------------


def whole(*contents: str | None, **message: Any) -> bytes:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": content, **message},
            "finish_reason": "stop",
        }
        for i, content in enumerate(contents)
    ]
    return orjson.dumps({"id": ID, "model": "m", "choices": choices, "usage": {"total_tokens": 9}})


def woven(body: bytes, made: Receipt | None = None) -> dict[str, Any]:
    return weave.weave(body, made or receipt(), model="gpt-4o-mini", timings_ms={"embed": 1.5})


def test_a_whole_answer() -> None:
    answer = woven(whole("🙂 [2]", "nothing"))
    assert answer["model"] == "gpt-4o-mini"
    assert answer["usage"] == {"total_tokens": 9}
    first, second = (choice["message"]["annotations"] for choice in answer["choices"])
    assert [(a["url_citation"]["start_index"], a["url_citation"]["end_index"]) for a in first] == [
        (2, 5)
    ]
    assert [a["url_citation"]["start_index"] for a in second] == [7, 7]
    assert all("index" not in a for a in first), "chat messages have no index in an annotation"
    assert answer["rag"]["cited"] is True
    assert answer["rag"]["timings_ms"] == {"embed": 1.5}


def test_a_whole_answer_that_cites_nothing() -> None:
    assert woven(whole("no [9] `[1]`"))["rag"]["cited"] is False


def test_a_whole_tool_call() -> None:
    answer = woven(whole(None, tool_calls=[{"id": "c"}]), receipt(footer=True))
    message = answer["choices"][0]["message"]
    assert (message["annotations"], message["content"]) == ([], None)


def test_a_whole_text_beside_a_call() -> None:
    body = whole("By [1] I look it up.", "I look it up.", tool_calls=[{"id": "c"}])
    answer = woven(body, receipt(footer=True))
    cites, cites_none = (choice["message"] for choice in answer["choices"])
    assert [a["url_citation"]["start_index"] for a in cites["annotations"]] == [3]
    assert [a["url_citation"]["start_index"] for a in cites_none["annotations"]] == [13, 13]
    assert (cites["content"], cites_none["content"]) == ("By [1] I look it up.", "I look it up.")
    assert answer["rag"]["cited"] is True


def test_a_whole_answer_with_a_footer() -> None:
    message = woven(whole("Yes [1]."), receipt(footer=True))["choices"][0]["message"]
    assert message["content"].startswith("Yes [1].\n\nSources:\n[1] f1.md")
    assert message["annotations"][0]["url_citation"]["end_index"] == 7


# --- retrieval off ----------------------------------------------------------------------------------


def test_a_plain_answer_is_the_engines_bytes_but_for_the_model() -> None:
    body = b'{"id": "x", "model":"m","choices": [{"t": "\\u00e9 \\"model\\":\\"m\\""}], "f": 1.10}'
    assert weave.rename(body, "gpt-4o-mini") == body.replace(
        b'"model":"m"', b'"model":"gpt-4o-mini"', 1
    )
    assert weave.rename(body, "m") is body


def test_a_plain_stream_is_the_engines_bytes_but_for_the_model() -> None:
    events = [*PLAIN, chunk({"content": '"model":"m"'}), USAGE, weave.DONE]
    renamer = weave.Renamer("gpt-4o-mini")
    out = [renamer.feed(event) for event in events]
    assert out == [event.replace(b'"model":"m"', b'"model":"gpt-4o-mini"', 1) for event in events]
    same = weave.Renamer("m")
    assert [same.feed(event) for event in events] == events


def test_an_error_event_is_not_touched() -> None:
    weaver = weave.Weaver(receipt(), completion_id=ID, created=7, model="m", choices=1)
    raw = weave.event({"error": {"message": "gone", "type": "server_error", "code": "x"}})
    assert weaver.feed(raw) == raw


def test_a_refusal_is_a_completion() -> None:
    made = json.loads(
        weave.refusal("No.", chat=True, completion_id=ID, created=7, model="m", choices=2)
    )
    assert made["object"] == "chat.completion"
    assert [choice["index"] for choice in made["choices"]] == [0, 1]
    for choice in made["choices"]:
        assert choice["message"]["content"] == "No."
        assert choice["finish_reason"] == "stop"


CHUNK = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m",'


@pytest.mark.parametrize(
    ("rest", "holds"),
    [
        (b'"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}', False),
        (b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}', True),
        (b'"choices":[{"index":0,"delta":{"content":"a = [] or {}"}}]}', True),
        (rb'"choices":[{"index":0,"delta":{"content":"\"choices\":[] \"role\" \"delta\":{}"}}]}', True),
        (b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}', True),
        (b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}', False),
        (b'"choices":[],"usage":{"prompt_tokens":1}}', False),
        (b'"choices":[{"index":0,"text":" word"}]}', True),
        (b'"choices":[{"index":0,"delta":{"role":"assistant","content":" word"}}]}', True),
        (b'"choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"hm"}}]}', True),
        (b'"choices":[{"index":0,"delta":{"role":"assistant","content":null,"refusal":null}}]}', False),
        (b'"choices":[{"index":0,"text":"role","logprobs":{"tokens":["role"]}}]}', True),
    ],
)  # fmt: skip
def test_which_events_hold_a_token(rest: bytes, holds: bool) -> None:
    assert weave.has_token(CHUNK + rest + b"\n\n") is holds
    assert not weave.has_token(weave.DONE)

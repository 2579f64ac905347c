"""weave: the engine's answer and the receipt become the client's answer. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server import receipts
from server.receipts import Receipt

DATA = b"data: "
END = b"\n\n"
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error"'
HEAD_END = b',"choices":'


def event(payload: Mapping[str, Any]) -> bytes:
    """One server-sent event, with the blank line that ends it."""
    return DATA + orjson.dumps(payload) + END


def error_event(raw: bytes) -> bytes:
    """The engine's error event in OpenAI's envelope: `code` is a string or null there, never a number.

    The blank line is part of it: without, several clients see a normal end.
    """
    error = orjson.loads(raw.removeprefix(DATA))["error"]
    code = error.get("code")
    known = {"message": error.get("message", ""), "param": error.get("param")}
    if is_refusal(raw):
        return event({"error": {**known, "type": "invalid_request_error", "code": None}})
    code = code if isinstance(code, str) else "engine_error"
    return event({"error": {**known, "type": "server_error", "code": code}})


def has_token(raw: bytes) -> bool:
    """Whether an event of the engine's brings something that it generated; not for errors."""
    # For each token, so without parsing. Quotes within a text are escaped: no text looks like one of these.
    if b'"choices":[]' in raw or b'"delta":{}' in raw or raw == DONE:
        return False
    if b'"role"' not in raw:
        return True
    # Once a choice, but some servers say it with each token, and a list of tokens may hold the word.
    choices = orjson.loads(raw.removeprefix(DATA))["choices"]
    return any("delta" not in choice or _without_role(choice["delta"]) for choice in choices)


def is_refusal(raw: bytes) -> bool:
    """Whether an engine's error event says that the request was wrong: its numeric `code` is the status."""
    code = orjson.loads(raw.removeprefix(DATA))["error"].get("code")
    return isinstance(code, int) and 400 <= code < 500


def rename(body: bytes, model: str) -> bytes:
    """A whole completion under the name that the client asked for, every other byte as it was."""
    answer = orjson.loads(body)
    old, new = orjson.dumps(answer.get("model")), orjson.dumps(model)
    return body if old == new else body.replace(b'"model":' + old, b'"model":' + new, 1)


def weave(
    body: bytes, receipt: Receipt, *, model: str, timings_ms: Mapping[str, float]
) -> dict[str, Any]:
    """A whole completion with its sources: annotations on each text, `rag` beside the choices."""
    answer: dict[str, Any] = orjson.loads(body)
    answer["model"] = model
    cited = False
    for choice in answer["choices"]:
        message = choice["message"]
        text = message.get("content") or ""
        is_call = _is_tool_call(message.get("tool_calls"), choice.get("finish_reason"))
        message["annotations"], choice_cited, tail = _sources(receipt, text, is_call=is_call)
        cited = cited or choice_cited
        if tail:
            message["content"] = text + tail
    answer["rag"] = receipts.rag_field(receipt, timings_ms, cited=cited)
    return answer


def refusal(
    text: str, *, chat: bool, completion_id: str, created: int, model: str, choices: int
) -> bytes:
    """The completion that stands in for the engine's where `on_empty: refuse` has no sources."""
    message = {"role": "assistant", "content": text, "refusal": None}
    said = {"message": message} if chat else {"text": text}
    each = [
        {"index": index, **said, "logprobs": None, "finish_reason": "stop"}
        for index in range(choices)
    ]
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    kind = "chat.completion" if chat else "text_completion"
    return orjson.dumps(
        {**head(completion_id, created, model, kind), "choices": each, "usage": usage}
    )


def head(completion_id: str, created: int, model: str, kind: str) -> dict[str, Any]:
    return {"id": completion_id, "object": kind, "created": created, "model": model}


def _is_tool_call(tool_calls: Any, finish_reason: Any) -> bool:
    return bool(tool_calls) or finish_reason == "tool_calls"


def _sources(
    receipt: Receipt, text: str, *, is_call: bool
) -> tuple[list[dict[str, Any]], bool, str]:
    """A choice's annotations, whether its text cites, and its footer; a tool call alone is no text to annotate."""
    if is_call and not text.strip():
        return [], False, ""
    found, cited = receipts.annotate(receipt, text)
    # A call is not the answer's end, where the footer belongs; in a stream it would come behind the call.
    return found, cited, "" if is_call else receipts.footer(receipt, text)


def _has_tokens(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk's choice tells of tokens beside its delta, which may have no text."""
    return bool(choice.get("logprobs") or choice.get("token_ids"))


def _without_role(delta: Mapping[str, Any]) -> dict[str, Any]:
    """A delta without its role and the empty content that may come with it; empty where nothing else is said."""
    rest = {
        key: value for key, value in delta.items() if key != "role" and (value or key != "content")
    }
    return rest if any(rest.values()) else {}


class Renamer:
    """A plain stream's events under the client's model name, every other byte the engine's."""

    def __init__(self, model: str) -> None:
        self._new = b'"model":' + orjson.dumps(model)
        self._old: bytes | None = None

    def feed(self, raw: bytes) -> bytes:
        if self._old is None:
            self._old = self._find(raw)
        return raw.replace(self._old, self._new, 1) if self._old != self._new else raw

    def _find(self, raw: bytes) -> bytes:
        try:
            name = orjson.loads(raw.removeprefix(DATA)).get("model")
        except orjson.JSONDecodeError:
            return self._new
        return self._new if name is None else b'"model":' + orjson.dumps(name)


class Weaver:
    """A grounded stream: opens with the sources, ends each choice with its annotations.

    Feed it the engine's events in order. It sends what WIRE section 5 says: role chunks first (the engine's
    own role, which comes after the prefill, is taken out), content, annotations, finish, usage, `[DONE]`.
    Chunks that need no change keep the engine's bytes behind a new head.
    """

    def __init__(
        self, receipt: Receipt, *, completion_id: str, created: int, model: str, choices: int
    ) -> None:
        self._receipt = receipt
        self._head = head(completion_id, created, model, "chat.completion.chunk")
        self._head_bytes = DATA + orjson.dumps(self._head)[:-1] + HEAD_END
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tool_calls = [False] * choices

    def opening(self, timings_ms: Mapping[str, float]) -> bytes:
        """The first chunk of each choice; `rag` is on the first alone."""
        rag = receipts.rag_field(self._receipt, timings_ms)
        first = [
            self._chunk(
                index, {"role": "assistant", "content": ""}, rag=rag if index == 0 else None
            )
            for index in range(len(self._texts))
        ]
        return b"".join(first)

    def keep_alive(self) -> bytes:
        """An empty delta: every client accepts one, and their timers do not see SSE comments."""
        return self._chunk(0, {"content": ""})

    def feed(self, raw: bytes) -> bytes:
        """One event of the engine's as the events that the client gets (maybe none)."""
        if raw == DONE or raw.startswith(ERROR):
            return raw
        chunk = orjson.loads(raw.removeprefix(DATA))
        choices = chunk.get("choices")
        if not choices:
            return event({**chunk, **self._head})
        if len(choices) == 1:
            return self._choice(chunk, choices[0], raw)
        return b"".join(self._choice({**chunk, "choices": [one]}, one, b"") for one in choices)

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any], raw: bytes) -> bytes:
        index, delta = choice["index"], choice["delta"]
        if content := delta.get("content"):
            self._texts[index].append(content)
        if delta.get("tool_calls"):
            self._tool_calls[index] = True
        if "role" in delta:  # the opening has said it
            choice, raw = {**choice, "delta": _without_role(delta)}, b""
            chunk = {**chunk, "choices": [choice]}
        if choice.get("finish_reason") is not None:
            return self._finish(chunk, choice)
        if "role" in delta and not choice["delta"]:
            return self._beside_role(chunk, choice)
        if raw.startswith(b'data: {"id":') and (cut := raw.find(HEAD_END, 0, 512)) > 0:
            return self._head_bytes + raw[cut + len(HEAD_END) :]
        return event({**chunk, **self._head})

    def _beside_role(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bytes:
        """A role chunk that says nothing else, where it carries something beside its delta (prompt token ids)."""
        extra = {
            key: value
            for key, value in chunk.items()
            if key not in (*self._head, "choices") and value is not None
        }
        if not extra and not _has_tokens(choice):
            return b""
        return event({**self._head, **extra, "choices": [{**choice, "delta": {"content": ""}}]})

    def _finish(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bytes:
        """The last chunk in three: what is left of the content, the annotations, the bare finish."""
        index, finish_reason = choice["index"], choice["finish_reason"]
        out = b""
        if _has_tokens(choice) or any(choice["delta"].values()):
            body = {key: value for key, value in choice.items() if key != "stop_reason"}
            out += event({**chunk, **self._head, "choices": [{**body, "finish_reason": None}]})
        out += self._annotations(index, finish_reason)
        last = {"index": index, "delta": {}, "finish_reason": finish_reason}
        if "stop_reason" in choice:
            last["stop_reason"] = choice["stop_reason"]
        return out + event({**chunk, **self._head, "choices": [last]})

    def _annotations(self, index: int, finish_reason: str) -> bytes:
        text = "".join(self._texts[index])
        is_call = _is_tool_call(self._tool_calls[index], finish_reason)
        found, _, tail = _sources(self._receipt, text, is_call=is_call)
        out = self._chunk(index, {"content": tail}) if tail else b""
        if not found:
            return out
        # Distinct indexes: openai-python merges equal ones, and raises at a second list without any.
        listed = [{"index": position, **item} for position, item in enumerate(found)]
        return out + self._chunk(index, {"annotations": listed})

    def _chunk(self, index: int, delta: dict[str, Any], rag: dict[str, Any] | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": None}
        payload: dict[str, Any] = {**self._head, "choices": [choice]}
        if rag is not None:
            payload["rag"] = rag
        return event(payload)

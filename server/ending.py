"""The end of a stream whose time is over: as at a token limit, wherever it stands. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server import weave

#: Fields of a delta that hold generated text; vLLM has named its reasoning in both ways.
SAID = ("content", "reasoning", "reasoning_content", "refusal")


class Ending:
    """Follows an engine's events, and makes those that are missing when it is stopped.

    Of each choice it knows whether it began, whether it ended and what was said, reasoning and the arguments
    of tool calls included.
    """

    def __init__(
        self, *, chat: bool, choices: int, completion_id: str, created: int, model: str
    ) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = weave.head(completion_id, created, model, kind)
        self._chat = chat
        self._said: list[list[str]] = [[] for _ in range(choices)]
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self.has_usage = False

    @property
    def texts(self) -> list[str]:
        """What each choice has said so far."""
        return ["".join(said) for said in self._said]

    def feed(self, raw: bytes) -> None:
        """Take note of one event of the engine's."""
        if raw == weave.DONE or raw.startswith(weave.ERROR):
            return
        chunk = orjson.loads(raw.removeprefix(weave.DATA))
        self._head = {name: chunk.get(name, value) for name, value in self._head.items()}
        self.has_usage = self.has_usage or not chunk["choices"]
        for choice in chunk["choices"]:
            index = choice["index"]
            self._begun.add(index)
            self._said[index] += _said(choice)
            if choice.get("finish_reason") is not None:
                self._ended.add(index)

    def last(self) -> list[bytes]:
        """The chunks that end each choice that goes on, with `finish_reason: "length"`."""
        chunks = []
        for index in range(len(self._said)):
            if self._chat and index not in self._begun:
                chunks.append(self._chunk(index, {"delta": {"role": "assistant", "content": ""}}))
            if index not in self._ended:
                rest: Mapping[str, Any] = {"delta": {}} if self._chat else {"text": ""}
                chunks.append(self._chunk(index, rest, "length"))
        return chunks

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The usage chunk, which comes after them."""
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        return weave.event({**self._head, "choices": [], "usage": usage})

    def _chunk(
        self, index: int, said: Mapping[str, Any], finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}
        return weave.event({**self._head, "choices": [choice]})


def _said(choice: Mapping[str, Any]) -> list[str]:
    """The generated text of one chunk's choice."""
    delta = choice.get("delta")
    if delta is None:
        return [choice["text"] or ""]
    parts = [delta.get(name) for name in SAID]
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        parts += [function.get("name"), function.get("arguments")]
    return [part for part in parts if part]

"""weave, of text completions: the engine's text and the receipt become the client's answer. Pure.

Their choices have no place for annotations: the sources are in `rag`, and on request at the end of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson

from server import receipts, weave
from server.receipts import Receipt

T = TypeVar("T")
#: `echoed` where no prompt is.
NOTHING = ("",)


def weave_text(
    body: bytes,
    receipt: Receipt,
    *,
    model: str,
    timings_ms: Mapping[str, float],
    echoed: Sequence[str] = NOTHING,
) -> dict[str, Any]:
    """A whole text completion with its sources in `rag`.

    `echoed` are the prompts that stand in front of the answers: a marker in them cites nothing.
    """
    answer: dict[str, Any] = orjson.loads(body)
    answer["model"] = model
    choices, cited = answer["choices"], False
    for index, choice in enumerate(choices):
        text = choice["text"] or ""
        part = of_prompt(receipt.parts or (receipt,), index, len(choices))
        own = text.removeprefix(of_prompt(echoed, index, len(choices)))
        cited = cited or bool(receipts.find_citations(own, len(part.sources)))
        choice["text"] = text + receipts.footer(part, own)
    answer["rag"] = receipts.rag_field(receipt, timings_ms, cited=cited)
    return answer


def of_prompt(prompts: Sequence[T], index: int, choices: int) -> T:
    """What belongs to the prompt of this choice: those of the first prompt come first, as many of each."""
    return prompts[index * len(prompts) // choices]


class TextWeaver:
    """A grounded stream: opens with the sources, then the engine's chunks behind a head of ours.

    Feed it the engine's events in order. Only a footer is added to them, in each choice's last chunk.
    """

    def __init__(
        self,
        receipt: Receipt,
        *,
        completion_id: str,
        created: int,
        model: str,
        choices: int,
        echoed: Sequence[str] = NOTHING,
    ) -> None:
        self._receipt = receipt
        self._head = weave.head(completion_id, created, model, "text_completion")
        self._head_bytes = weave.DATA + orjson.dumps(self._head)[:-1] + weave.HEAD_END
        self._echoed = echoed
        self._texts: list[list[str]] = [[] for _ in range(choices)]

    def opening(self, timings_ms: Mapping[str, float]) -> bytes:
        """The first chunk, without text: `rag` is in it alone."""
        return self._empty(rag=receipts.rag_field(self._receipt, timings_ms))

    def keep_alive(self) -> bytes:
        """A chunk without text: clients' timers do not see SSE comments."""
        return self._empty()

    def feed(self, raw: bytes) -> bytes:
        """One event of the engine's as the client gets it."""
        if raw == weave.DONE or raw.startswith(weave.ERROR):
            return raw
        cut = raw.find(weave.HEAD_END, 0, 512)
        if cut > 0 and raw.startswith(b'data: {"id":') and not self._receipt.footer:
            return self._head_bytes + raw[cut + len(weave.HEAD_END) :]
        chunk = orjson.loads(raw.removeprefix(weave.DATA))
        for choice in chunk["choices"]:
            self._footed(choice)
        return weave.event({**chunk, **self._head})

    def _footed(self, choice: dict[str, Any]) -> None:
        index, said = choice["index"], self._texts[choice["index"]]
        said.append(choice["text"] or "")
        if choice.get("finish_reason") is not None:
            part = of_prompt(self._receipt.parts or (self._receipt,), index, len(self._texts))
            own = "".join(said).removeprefix(of_prompt(self._echoed, index, len(self._texts)))
            choice["text"] = said[-1] + receipts.footer(part, own)

    def _empty(self, **extra: Any) -> bytes:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        return weave.event({**self._head, "choices": [choice], **extra})

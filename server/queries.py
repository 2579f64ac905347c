"""What of a conversation is searched for: the question, and the question in its context. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval.types import WeightedText
from server.wire.chat import Message


def question_index(messages: Sequence[Message]) -> int | None:
    """The latest user message: after tool turns and before a prefill it is still the question."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
    return None


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text parts of a message, without what is not text."""
    if isinstance(content, str):
        return content.strip()
    texts = [part.get("text") for part in content or () if part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str)).strip()


def in_context(
    messages: Sequence[Message], question: int | None, weight: float
) -> tuple[WeightedText, ...]:
    """What is searched beside the question at this index: the same with the answer before it.

    Empty for a first question, which therefore loses nothing, and where `weight` is 0. The question comes
    first, because embedders and the keyword index read only the beginning of a long text.
    """
    if question is None or weight == 0:
        return ()
    asked = text_of(messages[question].content)
    earlier = (
        text_of(message.content)
        for message in reversed(messages[:question])
        if message.role == "assistant"
    )
    answer = next((text for text in earlier if text), "")
    if not asked or not answer:
        return ()
    return (WeightedText(f"{asked}\n{answer}", weight),)

"""What of a conversation or a prompt is searched for: the question, and the question in its context. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.types import FusionWeights, WeightedText
from server.wire.chat import Message
from server.wire.common import RankingOptions

#: What of a question is searched for. Embedders read some hundred tokens; tokenizing megabytes would keep the
#: one embedding thread from everyone else for seconds.
MAX_QUERY_CHARACTERS = 20_000
#: What of a prompt is searched for: about the 256 tokens of English that the default embedder reads.
TAIL_CHARACTERS = 1_000
CUT_WORD = re.compile(r"\A\S+\s")


@dataclass(frozen=True, slots=True)
class FollowUpWeights:
    """How much a follow-up's rankings with the turn before it weigh beside those of the question alone.

    Factors on the fusion's weights. Vectors gain from the turn before, which says what is talked about;
    keywords of a long answer drown the question's. The figures are in `docs/decisions/0008`.
    """

    dense: float = 2.0
    lexical: float = 0.5


def fusion_weights(ranking: RankingOptions | None) -> FusionWeights | None:
    """The request's own weights of the two rankings, as shares of the larger; None: the server's."""
    if ranking is None or ranking.hybrid_search is None:
        return None
    dense, lexical = ranking.hybrid_search.embedding_weight, ranking.hybrid_search.text_weight
    # Only their ratio means anything; scaled, any two floats stay far from overflow and underflow.
    most = max(dense, lexical)
    return FusionWeights(dense / most, lexical / most)


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


def tail_of(prompt: str) -> str:
    """The end of a text completion's prompt, in whole words: after instructions and examples comes the question."""
    text = prompt.strip()
    if len(text) <= TAIL_CHARACTERS:
        return text
    # One character more than is kept says whether the first word is whole.
    return CUT_WORD.sub("", text[-TAIL_CHARACTERS - 1 :]).strip()


def in_context(
    messages: Sequence[Message], question: int | None, weights: FollowUpWeights
) -> tuple[WeightedText, ...]:
    """What is searched beside the question at this index: the same with the turn before it.

    Empty for a first question, which therefore loses nothing, and where both weights are 0. The question
    comes first and the answer last, because embedders and the keyword index read only the beginning of a
    long text.
    """
    if question is None or not (weights.dense or weights.lexical):
        return ()
    asked = text_of(messages[question].content)
    earlier = messages[:question]
    answer = _latest(earlier, "assistant")
    if not asked or not answer:
        return ()
    text = "\n".join(part for part in (asked, _latest(earlier, "user"), answer) if part)
    return (WeightedText(text, weights.dense, weights.lexical),)


def _latest(messages: Sequence[Message], role: str) -> str:
    """The last text that this role said."""
    texts = (text_of(message.content) for message in reversed(messages) if message.role == role)
    return next((text for text in texts if text), "")

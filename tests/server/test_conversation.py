"""conversation: which turns are the same conversation, and what is put back where."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval.cache import Bounds, Cache
from retrieval.types import Candidate, Passage
from server.conversation import Block, Blocks, Conversations, blocks_bytes, replay, sources_of

SCOPE = ("model", (("local", "vs_1", 3),))


def block(index: int, number: int = 1) -> Block:
    passage = Passage("file-1", "ab" * 32, number, "f.md", f"text {number}")
    return Block(index, f"block {number}\n", (Candidate(passage, 0.5),), 10)


def said(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    turns = [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def conversations() -> Conversations:
    return Conversations(Cache(Bounds(10, 100_000), blocks_bytes))


def remembering(messages: list[dict[str, Any]], blocks: Blocks) -> Conversations:
    made = conversations()
    made.remember(SCOPE, messages, len(messages) - 1, blocks)
    return made


FIRST = said("one")


@pytest.mark.parametrize(
    ("messages", "known"),
    [
        (said("one", "answer", "two"), True),
        (said("one", "the answer, trimmed by the client", "two"), True),
        (said("one", "answer", "two", "answer", "three"), True),
        (said("one"), False),  # the same question again: it is searched for like any other
        (said("other", "answer", "two"), False),
        (said("one", "answer", "two", system="be brief"), False),
        (said("zero", "answer", "one", "answer", "two"), False),
    ],
)
def test_a_conversation_is_known_by_what_the_user_said(
    messages: list[dict[str, Any]], known: bool
) -> None:
    blocks = (block(0),)
    found = remembering(FIRST, blocks).recall(SCOPE, messages, len(messages) - 1)
    assert found == (blocks if known else ())


def test_another_scope_is_another_conversation() -> None:
    made = remembering(FIRST, (block(0),))
    assert made.recall(("model", (("local", "vs_1", 4),)), said("one", "answer", "two"), 2) == ()


def test_the_latest_turn_counts() -> None:
    made = remembering(FIRST, (block(0),))
    longer = said("one", "answer", "two")
    both = (block(0), block(2, 2))
    made.remember(SCOPE, longer, 2, both)
    assert made.recall(SCOPE, said("one", "answer", "two", "answer", "three"), 4) == both
    assert made.recall(SCOPE, said("one", "answer", "changed"), 2) == (block(0),)
    assert [source.passage.chunk for source in sources_of(both)] == [1, 2]


def test_each_block_stands_before_its_own_question() -> None:
    messages = said("one", "answer", "two", "answer", "three")
    replayed = replay(messages, (block(0), block(2, 2)))
    assert [m["content"] for m in replayed] == [
        "block 1\none", "answer", "block 2\ntwo", "answer", "three",
    ]  # fmt: skip
    assert messages == said("one", "answer", "two", "answer", "three")

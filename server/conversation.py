"""What was injected into a conversation before, to stand there again: the engine's prefix cache then holds."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from retrieval.cache import Cache
from retrieval.types import Candidate
from server.inject import inject

#: Objects of a source beside its passage, which the retrieval cache may hold as well, roughly.
_SOURCE_BYTES = 300
#: What of a conversation says which one it is. Clients trim and annotate what the assistant said.
_KEYED_ROLES = ("user", "system")


@dataclass(frozen=True, slots=True)
class Block:
    """What one user message was given: the message's index, the text, its sources and its prompt tokens."""

    index: int
    text: str
    sources: tuple[Candidate, ...]
    tokens: int


Blocks = tuple[Block, ...]


def sources_of(blocks: Blocks) -> tuple[Candidate, ...]:
    """All sources of a conversation in the order of their numbers, which count on from turn to turn."""
    return tuple(source for block in blocks for source in block.sources)


def tokens_of(blocks: Blocks) -> int:
    return sum(block.tokens for block in blocks)


def replay(messages: Sequence[Mapping[str, Any]], blocks: Blocks) -> list[Mapping[str, Any]]:
    """The messages with each block in front of its own."""
    replayed = list(messages)
    for block in blocks:
        replayed = inject(replayed, block.index, block.text)
    return replayed


class Conversations:
    """Remembers the blocks of each conversation, by what the user said until then.

    Messages are the engine's view of them (`developer` is `system`). `scope` is everything else that must be
    the same: model, stores, and their state, so that what has left a store also leaves the conversations.
    Losing an entry costs time alone: the conversation goes on as if nothing had been injected before.
    """

    def __init__(self, cache: Cache[bytes, Blocks]) -> None:
        self._cache = cache

    def recall(
        self, scope: Hashable, messages: Sequence[Mapping[str, Any]], question: int
    ) -> Blocks:
        """The blocks of the turns before the question at this index; the latest turn that had any counts."""
        keys = [key for index, key in _turns(scope, messages[:question]) if index < question]
        return (self._cache.find(reversed(keys)) if keys else None) or ()

    def remember(
        self, scope: Hashable, messages: Sequence[Mapping[str, Any]], question: int, blocks: Blocks
    ) -> None:
        """Keep the blocks that the question at this index and the turns before it were given."""
        for index, key in _turns(scope, messages[: question + 1]):
            if index == question:
                self._cache.keep(key, blocks)


def _turns(scope: Hashable, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Index and key of every user message."""
    digest = hashlib.blake2b(repr(scope).encode(), digest_size=16)
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in _KEYED_ROLES:
            digest.update(orjson.dumps([index, role, message.get("content")]))
        if role == "user":
            yield index, digest.digest()


def blocks_bytes(key: bytes, blocks: Blocks) -> int:
    """About what a kept conversation takes."""
    texts = sum(sys.getsizeof(block.text) for block in blocks)
    return sys.getsizeof(key) + texts + _SOURCE_BYTES * len(sources_of(blocks))

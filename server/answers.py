"""Answers that were given before, for requests that are to be answered the same each time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import orjson

from retrieval.cache import Cache
from retrieval.trace import Trace
from server import weave
from server.engine.base import NO_TRACE, Body, Engine, Events, TraceHeaders

#: Objects of one event beside its bytes, roughly.
_EVENT_BYTES = 60
#: What differs between two requests that ask for the same.
_UNREAD = ("user", "metadata", "safety_identifier")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said: a whole body, or all events of a stream, under the id of that request."""

    completion_id: str
    parts: tuple[bytes, ...]


class Answers:
    """Asks the engine, or repeats what it said to exactly the same request.

    The key is the request as the engine gets it, sources and the tenant's `cache_salt` included: other
    sources are another request. Only requests of temperature 0 are remembered, and only whole answers.
    """

    def __init__(self, cache: Cache[bytes, Answer]) -> None:
        self._cache = cache

    async def complete(
        self,
        engine: Engine,
        body: Body,
        completion_id: str,
        trace: Trace,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> bytes:
        """As the engine's own; a repeated answer says `answer` in `trace.cached`. Raises EngineError."""
        key = self._key(body, stream=False)
        if (known := self._find(key, trace)) is not None:
            return _renewed(known.parts[0], completion_id)
        raw = await engine.complete(body, completion_id, trace_headers)
        if key is not None:
            self._cache.keep(key, Answer(completion_id, (raw,)))
        return raw

    async def stream(
        self,
        engine: Engine,
        body: Body,
        completion_id: str,
        trace: Trace,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> Events:
        """As the engine's own; a repeated answer comes all at once, in the same events. Raises EngineError."""
        key = self._key(body, stream=True)
        if (known := self._find(key, trace)) is not None:
            return _repeat(known, completion_id)
        events = await engine.stream(body, completion_id, trace_headers)
        if key is None:
            return events
        listening = self._listening(key, events, completion_id)
        await anext(listening)  # a generator that never started would not close the engine's events
        return listening

    def _find(self, key: bytes | None, trace: Trace) -> Answer | None:
        known = None if key is None else self._cache.find((key,))
        if known is not None:
            trace.cached.append("answer")
        return known

    def _key(self, body: Body, *, stream: bool) -> bytes | None:
        if not self._cache.on or body.get("temperature") != 0:
            return None
        asked = {name: value for name, value in body.items() if name not in _UNREAD}
        raw = orjson.dumps({**asked, "stream": stream}, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(raw, digest_size=16).digest()

    async def _listening(
        self, key: bytes, events: Events, completion_id: str
    ) -> AsyncGenerator[bytes, None]:
        """The engine's events, remembered if they come to their end."""
        parts: list[bytes] = []
        try:
            yield b""
            async for raw in events:
                parts.append(raw)
                if raw.startswith(weave.ERROR):
                    parts.clear()
                if raw == weave.DONE and len(parts) > 1:
                    self._cache.keep(key, Answer(completion_id, tuple(parts)))
                yield raw
        finally:
            await events.aclose()


async def _repeat(answer: Answer, completion_id: str) -> AsyncGenerator[bytes, None]:
    old, new = (b'"id":' + orjson.dumps(name) for name in (answer.completion_id, completion_id))
    now = b'"created":%d' % int(time.time())
    created: bytes | None = None
    for raw in answer.parts:
        if raw == weave.DONE:
            yield raw
            continue
        if created is None:
            created = b'"created":%d' % orjson.loads(raw.removeprefix(weave.DATA))["created"]
        yield raw.replace(old, new, 1).replace(created, now, 1)


def _renewed(raw: bytes, completion_id: str) -> bytes:
    """A whole answer as if it had been given now."""
    answer: dict[str, Any] = orjson.loads(raw)
    return orjson.dumps({**answer, "id": completion_id, "created": int(time.time())})


def answer_bytes(key: bytes, answer: Answer) -> int:
    """About what a kept answer takes."""
    return len(key) + sum(len(part) + _EVENT_BYTES for part in answer.parts)

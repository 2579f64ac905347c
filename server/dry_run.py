"""A dry run's counts: what the prompt would take, part by part. Nothing else is asked of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from server.engine.base import Engine, is_chat
from server.prepared import Count, Prepared, prompt_tokens


async def count(engine: Engine, prepared: Prepared) -> None:
    """Count each prompt, into `prepared.counts`; token ids, say, cannot be counted. Raises EngineError."""
    own = engine.answering(prepared.plan.engine_model)
    prompts = zip(_each(prepared.body), _each(prepared.bare), strict=True)
    prepared.counts = tuple([await _count(own, body, bare) for body, bare in prompts])


async def _count(engine: Engine, body: Mapping[str, Any], bare: Mapping[str, Any]) -> Count | None:
    if not is_chat(body) and not isinstance(body.get("prompt"), str):
        return None
    prompt = await prompt_tokens(engine, body)
    if prompt is None:
        return None
    # In a thread: no stream should wait for a long prompt to be read.
    texts = await asyncio.to_thread(engine.count_text, list(_texts(bare)))
    return Count(prompt, sum(texts))


def _each(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A body for each prompt; one list of token ids is one prompt."""
    prompt = body.get("prompt")
    if is_chat(body) or not isinstance(prompt, list) or all(type(id_) is int for id_ in prompt):
        return [body]
    return [{**body, "prompt": one} for one in prompt]


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """What the client wrote."""
    if not is_chat(body):
        yield body["prompt"]
        return
    for message in body["messages"]:
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content or ()
        for part in parts:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]

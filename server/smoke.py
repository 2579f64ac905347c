"""One question to a running server, from outside, and where its answer's seconds went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

#: The stages that each row of the table adds up, by their names in `rag.timings_ms`.
LLM_STAGES = ("queue", "prefill", "decode")
AFTER_SEARCH = ("fuse", "rerank", "pack")


class SmokeFailed(Exception):
    """The server did not answer as it should; the message says what was wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask: one turn, in the server's default store or in `store`."""

    text: str
    store: str | None = None
    max_tokens: int = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `seconds` is the request as its client saw it; `waking_seconds` what went before it:
    the time until the server could answer at all, which a cold start makes long.
    """

    text: str
    status: str
    sources: tuple[str, ...]
    timings_ms: Mapping[str, float]
    seconds: float
    waking_seconds: float


def rows(answer: Answer) -> list[tuple[str, float]]:
    """The seconds of embedding, retrieval and LLM, of what lies between client and stages, and in total.

    Retrieval runs beside the embedding in part: the keyword search does not wait for the vector. What counts is
    the critical path, the longer of embedding with dense search and the keyword search.
    """
    ms = answer.timings_ms
    embedding = ms.get("embed", 0.0)
    searched = max(embedding + ms.get("search", 0.0), ms.get("lexical", 0.0))
    retrieval = searched - embedding + sum(ms.get(stage, 0.0) for stage in AFTER_SEARCH)
    llm = sum(ms.get(stage, 0.0) for stage in LLM_STAGES)
    stages = [("embedding", embedding), ("retrieval", retrieval), ("LLM", llm)]
    named = [(name, milliseconds / 1000) for name, milliseconds in stages]
    elsewhere = answer.seconds - sum(seconds for _, seconds in named)
    return [*named, ("network and the rest", max(elsewhere, 0.0)), ("total", answer.seconds)]


async def ask(client: httpx.AsyncClient, question: Question) -> Answer:
    """Wait until the server is there, then ask. `client` has the base URL, without `/v1`, and the key.

    Raises SmokeFailed for an answer that is an error or that no passage grounds.
    """
    try:
        began = time.perf_counter()
        _checked(await client.get("/health"))
        awake = time.perf_counter()
        response = _checked(await client.post("/v1/chat/completions", json=_body(question)))
        ended = time.perf_counter()
    except httpx.HTTPError as error:
        raise SmokeFailed(f"{client.base_url}: {error or type(error).__name__}") from error
    try:
        body = response.json()
        text = body["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError) as error:
        raise SmokeFailed(f"{client.base_url} did not answer as OpenAI's API does") from error
    status = response.headers.get("x-rag-status", "off")
    if status != "hit":
        raise SmokeFailed(_not_grounded(status, body.get("rag") or {}))
    rag = body["rag"]
    return Answer(text, status, _sources(rag), rag["timings_ms"], ended - awake, awake - began)


def _not_grounded(status: str, rag: Mapping[str, Any]) -> str:
    """What was wrong, and what to do."""
    reason = rag.get("reason")
    if status == "miss" and reason == "no_store":
        return "the answer was not grounded (no_store): publish or ingest documents, or name another store"
    if status == "miss":
        return f"no passage answers the question ({reason}): ask one that the documents answer, with --question"
    if status == "degraded":
        return f"retrieval failed and was skipped ({reason}); see the log"
    return "the answer was not grounded: name a store, or set `default_store`"


def _body(question: Question) -> dict[str, Any]:
    rag = {"rag": {"vector_store_ids": [question.store]}} if question.store else {}
    return {
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
        **rag,
    }


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text[:200]
    raise SmokeFailed(f"{response.url} answered {response.status_code}: {message}")


def _sources(rag: Mapping[str, Any]) -> tuple[str, ...]:
    """File names, best first, each once."""
    names = [hit["filename"] for page in rag["search_results"] for hit in page["data"]]
    return tuple(dict.fromkeys(names))

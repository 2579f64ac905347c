"""Requests over HTTP, timed chunk by chunk as a client sees them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import httpx
import orjson


@dataclass(frozen=True, slots=True)
class Timed:
    """One streamed answer: seconds to the first token, mean seconds between tokens, tokens and total."""

    ttft_seconds: float
    itl_seconds: float
    tokens: int
    total_seconds: float


async def timed(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Timed:
    """Stream one chat request. Raises RuntimeError when it is refused or breaks off."""
    start = time.perf_counter()
    arrivals: list[float] = []
    done = False
    async with client.stream(
        "POST", f"{url}/v1/chat/completions", json={**body, "stream": True}
    ) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{url}: {answer.status_code} {await answer.aread()!r}")
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: ") and _has_token(line):
                arrivals.append(time.perf_counter())
    if not done or not arrivals:
        raise RuntimeError(f"{url}: the stream broke off")
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    total = time.perf_counter() - start
    return Timed(arrivals[0] - start, fmean(gaps) if gaps else 0.0, len(arrivals), total)


def _has_token(line: str) -> bool:
    choices = orjson.loads(line[6:]).get("choices")
    return bool(choices and choices[0]["delta"].get("content"))


async def burst(
    client: httpx.AsyncClient, url: str, bodies: Sequence[dict[str, Any]]
) -> tuple[list[Timed], float]:
    """All requests at once; their timings, and tokens per second over the burst."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(timed(client, url, body) for body in bodies))
    return answers, sum(answer.tokens for answer in answers) / (time.perf_counter() - start)

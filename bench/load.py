"""Requests over HTTP, timed as a client sees them."""

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

from bench.callers import stages


@dataclass(frozen=True, slots=True)
class Timed:
    """One streamed answer: seconds to the first token, and between each token and the next."""

    ttft_seconds: float
    gaps_seconds: tuple[float, ...]

    @property
    def itl_seconds(self) -> float:
        return fmean(self.gaps_seconds) if self.gaps_seconds else 0.0

    @property
    def tokens(self) -> int:
        return len(self.gaps_seconds) + 1


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
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(arrivals))
    return Timed(arrivals[0] - start, gaps)


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


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> httpx.Response:
    """One whole chat answer. Raises RuntimeError when it is refused."""
    answer = await client.post(f"{url}/v1/chat/completions", json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{url}: {answer.status_code} {answer.text}")
    return answer


def stages_ms(answer: httpx.Response) -> dict[str, float]:
    """Milliseconds by stage, from a response's `Server-Timing`."""
    return stages(answer.headers.get("server-timing", "").encode())


def retrieval_ms(answer: httpx.Response) -> float:
    """Milliseconds of retrieval along the critical path, from a response's `Server-Timing`."""
    stages = stages_ms(answer)
    dense = stages.get("embed", 0.0) + stages.get("search", 0.0)
    after = stages.get("fuse", 0.0) + stages.get("rerank", 0.0)
    return max(dense, stages.get("lexical", 0.0)) + after

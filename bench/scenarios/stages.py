"""Where a grounded request's time goes, one request at a time, as the response tells it."""

from __future__ import annotations

from statistics import median

from bench.corpus import question
from bench.figures import Figure, value
from bench.lab import Lab, body
from bench.load import ask

REQUESTS = 6
TOKENS = 16


async def run(lab: Lab) -> list[Figure]:
    server = (await lab.pair()).ours
    rounds: dict[str, list[float]] = {}
    for number in range(lab.rounds + 1):
        seen: dict[str, list[float]] = {}
        for asked in range(REQUESTS):
            request = body(question(50_000 + number * REQUESTS + asked), TOKENS)
            answer = await ask(lab.client, server.url, {**request, "model": server.model})
            for stage, ms in answer.json()["rag"]["timings_ms"].items():
                seen.setdefault(stage, []).append(ms)
        if number:
            for stage, values in seen.items():
                rounds.setdefault(stage, []).append(median(values))
    return [value(stage, "ms", values) for stage, values in rounds.items()]

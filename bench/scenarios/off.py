"""Retrieval off: the same plain request to all, so that the difference is our HTTP layer."""

from __future__ import annotations

import secrets
from functools import partial
from statistics import median
from typing import Any

from bench.figures import Figure, ratio
from bench.lab import Lab, alternate, body
from bench.load import Timed, burst
from bench.servers import Server
from bench.stats import Target

PROMPT = "Write a long story about a lighthouse. " * 12
#: An answer may be 2 % slower, and as much faster as it likes.
SLOWER, FEWER = Target(high=1.02), Target(low=0.98)
#: Requests a round where one comes at a time.
SINGLES = 8
Round = tuple[list[Timed], float]
UNITS = {"TTFT": "ms", "ITL": "ms", "throughput": "tokens/s"}


async def run(lab: Lab) -> list[Figure]:
    pair = await lab.pair()
    contenders = {server.name: server for server in (*pair.sides, *others(lab))}
    figures = []
    for at_once in lab.options.concurrency:
        one = partial(_round, lab, contenders, at_once)
        rounds = await alternate(tuple(contenders), lab.rounds, one)
        for other in contenders:
            if other != pair.ours.name:
                judged = other == pair.bare.name
                figures += _compare(rounds, pair.ours.name, other, at_once, judged=judged)
    return figures


def others(lab: Lab) -> list[Server]:
    """The contenders of `--vs NAME=URL`; `--vs-model NAME=MODEL` names what they serve."""
    models = dict(lab.options.vs_model)
    return [
        Server(name, url.rstrip("/").removesuffix("/v1"), models.get(name, "gpt-4o-mini"))
        for name, url in lab.options.vs
    ]


async def _round(lab: Lab, contenders: dict[str, Server], at_once: int, name: str, _: int) -> Round:
    server = contenders[name]
    if at_once > 1:
        return await burst(
            lab.client, server.url, [request_for(lab, server) for _ in range(at_once)]
        )
    single = [
        await burst(lab.client, server.url, [request_for(lab, server)]) for _ in range(SINGLES)
    ]
    return [one for answers, _ in single for one in answers], median(rate for _, rate in single)


def request_for(lab: Lab, server: Server) -> dict[str, Any]:
    """The same request for all; a server of unknown make gets OpenAI's own fields, and a prompt new to it."""
    tokens = lab.options.tokens
    if not server.pid:
        message = {"role": "user", "content": f"{secrets.token_hex(4)} {PROMPT}"}
        return {"model": server.model, "messages": [message], "max_tokens": tokens}
    asked = {**body(PROMPT, tokens), "model": server.model}
    return {**asked, "rag": {"enabled": False}} if server.name == "Groundwire" else asked


def _compare(
    rounds: dict[str, list[Round]], ours: str, other: str, at_once: int, *, judged: bool
) -> list[Figure]:
    figures = []
    for name, unit in UNITS.items():
        sides = [(side, [_figure(name, one) for one in rounds[side]]) for side in (ours, other)]
        target = (FEWER if name == "throughput" else SLOWER) if judged else None
        figures.append(ratio(name, unit, sides[0], sides[1], target, at_once=at_once))
    return figures


def _figure(name: str, one: Round) -> float:
    answers, rate = one
    if name == "throughput":
        return rate
    if name == "TTFT":
        return median(answer.ttft_seconds for answer in answers) * 1000
    return median(answer.itl_seconds for answer in answers) * 1000

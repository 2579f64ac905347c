"""From the start of the process to the first token: Groundwire and bare vLLM, each started anew in each round."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.corpus import question
from bench.figures import BEGAN, Figure, ratio, value
from bench.lab import Lab, alternate, body
from bench.load import timed
from bench.servers import Server
from bench.stats import Target, mean_interval

PROMPT = "Write a long story about a lighthouse."
TOKENS = 4
STEP = re.compile(
    r'^groundwire_start_step_(begin|duration)_seconds\{step="(\w+)"\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as the server tells it."""

    began_seconds: float
    took_seconds: float


@dataclass(frozen=True, slots=True)
class Started:
    """One start, in seconds: to the first token of a plain request, and what was seen after it."""

    first_token_seconds: float
    grounded_seconds: float = 0.0
    steps: Mapping[str, Step] = field(default_factory=dict)


async def run(lab: Lab) -> list[Figure]:
    """Ours opens a store of documents and warms up; what both are asked first is the same plain request."""
    data = await lab.data_dir()
    lab.end_searcher()
    lab.end_pair()  # other servers on the same cores would take their share of them
    sides: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        "bare vLLM": lab.bare,
        "Groundwire": lambda: lab.ours(data),
    }

    async def one(name: str, _: int) -> Started:
        return await _started(lab, sides[name]())

    rounds = await alternate(tuple(sides), lab.rounds, one)
    return figures(rounds["Groundwire"], rounds["bare vLLM"])


async def _started(lab: Lab, server: AbstractContextManager[Server]) -> Started:
    """Start it, ask it, end it; nothing else happens meanwhile, so it may hold the event loop up."""
    begin = time.perf_counter()
    with server as running:
        ours = running.name == "Groundwire"
        request = {**body(PROMPT, TOKENS), "model": running.model}
        if ours:
            request["rag"] = {"enabled": False}
        answered_from = time.perf_counter()
        first = (await timed(lab.client, running.url, request)).ttft_seconds
        seconds = answered_from - begin + first
        if not ours:
            return Started(seconds)
        grounded = {**body(question(0), TOKENS), "model": running.model}
        found = (await timed(lab.client, running.url, grounded)).ttft_seconds
        return Started(seconds, found, steps((await lab.client.get(f"{running.url}/metrics")).text))


def steps(page: str) -> dict[str, Step]:
    """The steps of a start, as its metrics page tells them."""
    told = {(kind, step): float(seconds) for kind, step, seconds in STEP.findall(page)}
    return {
        step: Step(told["begin", step], took)
        for (kind, step), took in told.items()
        if kind == "duration"
    }


def figures(ours: Sequence[Started], bare: Sequence[Started]) -> list[Figure]:
    """The comparison, and each step that every round had, in the order in which they begin."""
    sides = (
        ("Groundwire", [one.first_token_seconds for one in ours]),
        ("bare vLLM", [one.first_token_seconds for one in bare]),
    )
    return [
        ratio("start to the first token", "s", *sides, Target(high=1.05)),
        value("a grounded first token after it", "s", [one.grounded_seconds for one in ours]),
        *(_step(name, [one.steps[name] for one in ours]) for name in _common(ours)),
    ]


def _common(ours: Sequence[Started]) -> list[str]:
    names = [name for name in ours[0].steps if all(name in one.steps for one in ours)]
    return sorted(names, key=lambda name: ours[0].steps[name].began_seconds)


def _step(name: str, rounds: Sequence[Step]) -> Figure:
    took = [one.took_seconds for one in rounds]
    began = [one.began_seconds for one in rounds]
    columns = {"Groundwire": took, BEGAN: began}
    return Figure(f"of that {name}", "s", columns, "value", mean_interval(took))

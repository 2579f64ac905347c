"""What telemetry costs: Groundwire as it is, scraped every second, beside the same server with nothing counted."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext

import httpx
import numpy as np

from bench.corpus import question
from bench.figures import Figure, ratio, value
from bench.lab import Lab, alternate, body
from bench.load import Timed, burst
from bench.servers import Server
from bench.stats import Target

AT_ONCE = 32
#: Bursts of a round: one alone is over too soon to tell one per cent.
BURSTS = 3
SCRAPE_SECONDS = 1.0
#: What Prometheus asks for.
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
PAGES = 10
ON, OFF = "telemetry on", "telemetry off"
Round = tuple[list[Timed], float]


async def run(lab: Lab) -> list[Figure]:
    lab.end_searcher()
    lab.end_pair()
    data, copy = await lab.data_dir(), lab.folder / "silent-data"
    if not copy.exists():
        await asyncio.to_thread(shutil.copytree, data, copy)
    silent = (sys.executable, "-m", "bench.silent")
    with ExitStack() as stack:
        servers = {
            ON: stack.enter_context(lab.ours(data)),
            OFF: stack.enter_context(lab.ours(copy, program=silent)),
        }

        async def one(name: str, number: int) -> Round:
            # The page is part of the price: only the side that has one pays for it.
            scraped = _scraped(lab.client, servers[ON]) if name == ON else nullcontext()
            async with scraped:
                return await _round(lab, servers[name], number)

        rounds = await alternate((ON, OFF), lab.rounds, one)
        pages = [await _page_ms(lab.client, servers[ON]) for _ in range(lab.rounds)]
    return [
        _compared(rounds, "throughput", "tokens/s", lambda one: one[1], Target(low=0.99)),
        _compared(rounds, "ITL, 99th percentile", "ms", lambda one: _p99_ms(one[0])),
        value("/metrics", "ms", pages, Target(high=20)),
    ]


async def _round(lab: Lab, server: Server, number: int) -> Round:
    answers: list[Timed] = []
    rates = []
    for each in range(BURSTS):
        first = 70_000 + (number * BURSTS + each) * AT_ONCE
        # Without sources: reading long prompts would hide what counting each token costs.
        bodies = [
            {**body(question(first + n), lab.options.tokens), "model": f"{server.model}@none"}
            for n in range(AT_ONCE)
        ]
        got, rate = await burst(lab.client, server.url, bodies)
        answers += got
        rates.append(rate)
    # Of the same number of tokens each: the mean of the rates by time.
    return answers, len(rates) / sum(1 / rate for rate in rates)


@asynccontextmanager
async def _scraped(client: httpx.AsyncClient, server: Server) -> AsyncIterator[None]:
    """Ask for the server's metrics every second while the block runs, as Prometheus would, only oftener."""

    async def scrape() -> None:
        while True:
            await client.get(f"{server.url}/metrics", headers=OPENMETRICS)
            await asyncio.sleep(SCRAPE_SECONDS)

    task = asyncio.ensure_future(scrape())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _page_ms(client: httpx.AsyncClient, server: Server) -> float:
    """The median time of the page over HTTP, while nothing else goes on."""
    taken = []
    for _ in range(PAGES):
        start = time.perf_counter()
        page = await client.get(f"{server.url}/metrics", headers=OPENMETRICS)
        page.raise_for_status()
        taken.append((time.perf_counter() - start) * 1000)
    return float(np.median(taken))


def _p99_ms(answers: Sequence[Timed]) -> float:
    return float(np.percentile([gap for one in answers for gap in one.gaps_seconds], 99)) * 1000


def _compared(
    rounds: Mapping[str, Sequence[Round]],
    name: str,
    unit: str,
    read: Callable[[Round], float],
    target: Target | None = None,
) -> Figure:
    on, off = ((side, [read(one) for one in rounds[side]]) for side in (ON, OFF))
    return ratio(name, unit, on, off, target, at_once=AT_ONCE)

"""A stream beside an ingest: how much later its tokens come while the store grows by 5,000 passages."""

from __future__ import annotations

import asyncio
import subprocess

from bench.corpus import write_corpus
from bench.figures import Figure, ratio, value
from bench.lab import Lab, alternate, body
from bench.load import timed
from bench.servers import Server, ingest, ingested
from bench.stats import Target, percentile

PASSAGES = 5000
TOKENS = 200
#: Streams in quiet a round: p99 of 2,000 gaps.
STREAMS = 10
QUIET, BUSY = "quiet", "beside an ingest"


async def run(lab: Lab) -> list[Figure]:
    """Each round streams while it ingests its share of the passages, and in quiet, by turns first."""
    ours, data = (await lab.pair()).ours, await lab.data_dir()
    share = (100 if lab.options.quick else PASSAGES) // lab.rounds
    rates = []

    async def one(name: str, number: int) -> float:
        if name == QUIET:
            gaps = [gap for _ in range(STREAMS) for gap in await _gaps(lab, ours)]
            return percentile(gaps, 0.99) * 1000
        folder = lab.folder / f"beside-{number}"
        # Text of its own: unchanged bytes would not be embedded again.
        write_corpus(folder, share, seed=number + 1)
        gaps, report = await _while_running(lab, ours, ingest(folder, data, store="beside"))
        rates.append(report["chunks"] / report["seconds"])
        return percentile(gaps, 0.99) * 1000

    rounds = await alternate((QUIET, BUSY), lab.rounds, one, warm=False)
    sides = (BUSY, rounds[BUSY]), (QUIET, rounds[QUIET])
    return [
        ratio("ITL, 99th percentile", "ms", *sides, Target(high=1.2)),
        value("the ingest beside streams", "passages/s", rates),
    ]


async def _while_running(
    lab: Lab, server: Server, process: subprocess.Popen[bytes]
) -> tuple[list[float], dict[str, float]]:
    """The gaps of streams that began before the process ended, and its report."""
    gaps: list[float] = []
    ended = asyncio.ensure_future(asyncio.to_thread(ingested, process))
    while not ended.done():
        gaps += await _gaps(lab, server)
    return gaps, await ended


async def _gaps(lab: Lab, server: Server) -> tuple[float, ...]:
    request = {
        **body("Tell a long story.", TOKENS),
        "model": server.model,
        "rag": {"enabled": False},
    }
    return (await timed(lab.client, server.url, request)).gaps_seconds

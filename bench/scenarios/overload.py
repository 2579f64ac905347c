"""Four times the requests that a server can take, for five minutes: `bench.overload` against a small admission.

One long run and no rounds: what counts is that it holds out. The server has few places, so that the client,
which shares its cores, can ask for four times as much.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from bench.corpus import question
from bench.figures import Figure, once
from bench.lab import Lab
from bench.load import timed
from bench.servers import SCRIPT, Server, groundwire
from bench.stats import Target
from server.settings import BUNDLED_CHAT_MODEL

TIMES = 4
TOKENS = 64
#: Requests at a time, and seconds that as many more may wait: nobody should, or a refusal took that long.
#: A scripted place costs no CPU, a real one all of it.
SCRIPTED, REAL = (8, 2.0), (2, 30.0)
#: About ten answers a second from eight places, so that the client's share of the cores stays small.
SLOW = {**SCRIPT, "token_seconds": 0.01, "prefill_seconds": 0.1}


async def run(lab: Lab) -> list[Figure]:
    places, bound = SCRIPTED if lab.scripted else REAL
    lab.end_searcher()
    lab.end_pair()  # another engine on the same cores would take its share of them
    with await _server(lab, places, bound) as server:
        capacity = await _capacity(lab, server, places)
        found = await _overloaded(lab, server, TIMES * capacity)
    return figures(found, capacity, bound)


async def _server(lab: Lab, places: int, bound: float) -> AbstractContextManager[Server]:
    settings = {
        "max_running": places,
        "max_queued": places,
        "queue_timeout_seconds": bound,
    }
    return groundwire(
        await lab.data_dir(),
        lab.folder / "overload.log",
        model=BUNDLED_CHAT_MODEL,
        flags=lab.engine_flags,
        scripted=lab.scripted,
        script=SLOW,
        settings=settings,
    )


async def _capacity(lab: Lab, server: Server, places: int) -> float:
    """Answers a second when every place is always taken."""
    until = time.perf_counter() + (3 if lab.options.quick else 30)
    start, answered = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal answered
        while time.perf_counter() < until:
            message = {"role": "user", "content": question(0)}
            request = {"model": server.model, "messages": [message], "max_tokens": TOKENS}
            await timed(lab.client, server.url, request)
            answered += 1

    await asyncio.gather(*(caller() for _ in range(places)))
    return answered / (time.perf_counter() - start)


async def _overloaded(lab: Lab, server: Server, rate: float) -> dict[str, Any]:
    seconds = 10 if lab.options.quick else 300
    command = ["-m", "bench.overload", server.url, "--rate", f"{rate:.3f}", "--model", server.model]
    command += ["--seconds", str(seconds), "--pid", str(server.pid), "--max-tokens", str(TOKENS)]
    command += ["--question", question(0)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the client of the overload failed")
    found: dict[str, Any] = json.loads(out)
    return found


def figures(found: dict[str, Any], capacity: float, bound: float) -> list[Figure]:
    """What the run says, against the targets. Raises RuntimeError when nothing was refused: no overload."""
    if not found["refused"] or not found["accepted"]:
        raise RuntimeError(f"{found['accepted']} accepted, {found['refused']} refused: no overload")
    longest = 1.5 * found["quiet_ttft_seconds"] + bound
    recovery = found["recovery_seconds"]
    return [
        once("capacity", "answers/s", capacity),
        once("asked for", "requests/s", found["rate"]),
        once(
            "accepted, TTFT, 99th percentile",
            "s",
            found["accepted_ttft_p99_seconds"],
            Target(high=longest),
        ),
        once("refused, median", "ms", found["refused_p50_seconds"] * 1000),
        once(
            "refused, 99th percentile", "ms", found["refused_p99_seconds"] * 1000, Target(high=50)
        ),
        once("neither answered nor refused", "requests", found["broken"], Target(high=0)),
        once("memory, last third to first", "×", found["resident_growth"] or 1.0, Target(high=1.1)),
        once("recovery (60: never)", "s", 60.0 if recovery is None else recovery, Target(high=5)),
        once("still counted as running", "requests", sum(found["gauges"].values()), Target(high=0)),
    ]

"""Retrieval over HTTP: the search route, alone and at 16 callers, with a client in its own process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from bench.corpus import question
from bench.figures import Figure, value
from bench.lab import Lab
from bench.servers import GROUNDWIRE, STORE, Server
from bench.stats import Target

CALLERS = 16


async def run(lab: Lab) -> list[Figure]:
    server = await lab.searcher()
    store = store_id(await lab.data_dir())
    alone: list[float] = []
    rates: list[float] = []
    stages: dict[str, list[float]] = {}
    few, many = (10, 40) if lab.options.quick else (150, 1000)
    for number in range(lab.rounds + 1):
        one = await load(server, store, 1, few, first=number * 10_000)
        crowd = await load(server, store, CALLERS, many, first=number * 10_000 + few)
        if number:
            alone.append(median(one["latencies_ms"]))
            rates.append(len(crowd["latencies_ms"]) / crowd["seconds"])
            for stage, taken in one["stages_ms"].items():
                stages.setdefault(stage, []).append(median(taken))
        print(".", end="", flush=True)
    print()
    return [
        value("search, median", "ms", alone, Target(high=8)),
        value("searches", "requests/s", rates, Target(low=350), at_once=CALLERS),
        *(value(f"alone, of that {stage}", "ms", taken) for stage, taken in stages.items()),
    ]


def store_id(data_dir: Path, name: str = STORE) -> str:
    """The id of the store of this name in a data directory."""
    command = [str(GROUNDWIRE), "stores", "--json", "--data-dir", str(data_dir)]
    stores = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return next(str(store["id"]) for store in stores if store["name"] == name)


async def load(
    server: Server, store: str, callers: int, requests: int, *, first: int
) -> dict[str, Any]:
    """`requests` different questions from `callers` callers. Raises RuntimeError when one is refused."""
    url = urlsplit(server.url)
    command = ["-m", "bench.callers", str(url.hostname), str(url.port)]
    command += [f"/v1/vector_stores/{store}/search", str(callers), str(requests)]
    bodies = [
        json.dumps({"query": question(first + i), "max_num_results": 4}) for i in range(requests)
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, problem = await process.communicate("\n".join(bodies).encode())
    if process.returncode != 0:
        raise RuntimeError(f"the client failed: {problem.decode()[-300:]}")
    found: dict[str, Any] = json.loads(out)
    return found

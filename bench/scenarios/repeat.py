"""A repeated question: what its retrieval still takes, in the process and as part of a request.

No stage runs for it, so `Server-Timing` says nothing: the retriever is timed where the server calls it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median

from bench.corpus import question
from bench.figures import Figure, value
from bench.lab import Lab
from bench.scenarios.search import load, store_id
from bench.servers import STORE
from bench.stats import Target

QUESTIONS = 50


async def run(lab: Lab) -> list[Figure]:
    server, data = await lab.searcher(), await lab.data_dir()
    store = store_id(data)
    asked = []
    for number in range(lab.rounds):
        first = 30_000 + number * QUESTIONS
        await load(server, store, 1, QUESTIONS, first=first)
        again = await load(server, store, 1, QUESTIONS, first=first)
        asked.append(median(again["latencies_ms"]))
    inside = await _inside(data, lab.rounds)
    return [
        value("retrieval, repeated", "ms", inside, Target(high=1)),
        value("the whole search request, repeated", "ms", asked),
    ]


async def _inside(data: Path, rounds: int) -> list[float]:
    """The retriever alone, built as the server builds it, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.scenarios.repeat", str(data), str(rounds),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the retriever alone failed")
    medians: list[float] = json.loads(out)
    return medians


async def main(data_dir: Path, rounds: int) -> None:
    """Print the median milliseconds of a repeated retrieval, one for each round."""
    from retrieval.trace import Trace
    from retrieval.types import Query
    from server.catalog import LOCAL_TENANT
    from server.services import open_services
    from server.settings import load_settings

    medians = []
    async with open_services(
        load_settings({"data_dir": data_dir, "engine": "scripted"})
    ) as services:
        store = await services.handover.current.catalog.find_store(LOCAL_TENANT, STORE)
        for number in range(rounds):
            taken = []
            for asked in range(QUESTIONS):
                query = Query(question(number * QUESTIONS + asked), (store.id,), 4)
                await services.handover.current.retriever.retrieve(query, Trace())
                start, trace = time.perf_counter(), Trace()
                await services.handover.current.retriever.retrieve(query, trace)
                taken.append((time.perf_counter() - start) * 1000)
                if trace.cached != ["retrieval"]:
                    raise RuntimeError("a repeated question was not remembered")
            medians.append(median(taken))
    print(json.dumps(medians))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

"""Resident memory beside vLLM: our process and Chroma's, less bare vLLM's API server; engines left out."""

from __future__ import annotations

import asyncio
from collections import Counter

import psutil  # type: ignore[import-untyped]

from bench.corpus import question
from bench.figures import Figure, difference, value
from bench.lab import Lab, body
from bench.load import ask
from bench.servers import Server
from bench.stats import Target

MIB = 2**20
#: What the engine's own processes are called: by vLLM, or before it has renamed them.
ENGINE_NAMES = ("VLLM::", "multiprocessing.spawn import spawn_main")


async def run(lab: Lab) -> list[Figure]:
    """Proportional set size, in which a page shared by several processes counts once."""
    if lab.scripted:
        return await _alone(lab)
    pair = await lab.pair()
    ours, bare, chroma = [], [], []
    for number in range(lab.rounds):
        for server in pair.sides:
            request = {**body(question(number), 4), "model": server.model}
            await ask(lab.client, server.url, request)
        mine = await asyncio.to_thread(memory_mib, pair.ours)
        theirs = await asyncio.to_thread(memory_mib, pair.bare)
        ours.append(mine.total())
        bare.append(theirs["server"])
        chroma.append(mine["chroma"])
    sides = ("Groundwire", ours), ("bare vLLM's API server", bare)
    return [
        difference("memory, Chroma included", "MiB", *sides, Target(high=500)),
        value("of that, Chroma", "MiB", chroma),
    ]


async def _alone(lab: Lab) -> list[Figure]:
    """All that ours takes over a scripted engine: what vLLM's API server would take anyway is in it."""
    server = await lab.searcher()
    found = []
    for number in range(lab.rounds):
        await ask(lab.client, server.url, {**body(question(number), 4), "model": server.model})
        found.append(await asyncio.to_thread(memory_mib, server))
    return [
        value("memory, Chroma included", "MiB", [one.total() for one in found], Target(high=500)),
        value("of that, Chroma", "MiB", [one["chroma"] for one in found]),
    ]


def memory_mib(server: Server) -> Counter[str]:
    """MiB of a server's process tree by part (`server`, `chroma`), without its engine's processes."""
    found: Counter[str] = Counter()
    pending = [psutil.Process(server.pid)]
    while pending:
        process = pending.pop()
        command = " ".join([process.name(), *process.cmdline()])
        if any(name in command for name in ENGINE_NAMES):
            continue  # its children are workers
        part = "chroma" if "search/launch.py" in command else "server"
        found[part] += process.memory_full_info().pss / MIB
        pending += process.children()
    return found

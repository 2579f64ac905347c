"""Retrieval by collection size: questions over 1,000, 10,000 and 100,000 made-up passages in one Chroma."""

from __future__ import annotations

from statistics import median

import httpx

from bench.corpus import question
from bench.figures import Figure, ratio, value
from bench.lab import Lab, alternate, body
from bench.load import ask, retrieval_ms, stages_ms
from bench.servers import Server, groundwire
from bench.stats import Target
from bench.synthetic import write_store

QUESTIONS = 60


async def run(lab: Lab) -> list[Figure]:
    sizes = (100, 200, 2000) if lab.options.quick else (1_000, 10_000, 100_000)
    names = {str(size): size for size in sizes}
    data, log = lab.folder / "scale", lab.folder / "scale.log"
    topics = await lab.topics()
    for name, passages in names.items():
        print(f"  writing {passages} passages", flush=True)
        await write_store(data, name, passages, topics)
    with groundwire(data, log, model="", store=None, scripted=True) as server:

        async def one(name: str, number: int) -> list[httpx.Response]:
            return await _answers(lab, server, name, number)

        rounds = await alternate(tuple(names), lab.rounds, one)
    whole = {name: [_median(answers) for answers in kept] for name, kept in rounds.items()}
    dense = {
        name: [_median(answers, "search") for answers in kept] for name, kept in rounds.items()
    }
    _, small, large = ((f"{size:,} passages", name) for name, size in names.items())
    return [
        ratio(
            "retrieval",
            "ms",
            (large[0], whole[large[1]]),
            (small[0], whole[small[1]]),
            Target(high=2),
        ),
        ratio("of that, Chroma", "ms", (large[0], dense[large[1]]), (small[0], dense[small[1]])),
        *(value(f"over {size:,} passages", "ms", whole[name]) for name, size in names.items()),
    ]


async def _answers(lab: Lab, server: Server, store: str, number: int) -> list[httpx.Response]:
    found = []
    for asked in range(QUESTIONS):
        # A question of each store's own: its vector would be remembered from the store before.
        request = body(f"{question(number * QUESTIONS + asked)} Store {store}.", 1)
        found.append(
            await ask(lab.client, server.url, {**request, "model": f"{server.model}@{store}"})
        )
    return found


def _median(answers: list[httpx.Response], stage: str | None = None) -> float:
    if stage is None:
        return median(map(retrieval_ms, answers))
    return median(stages_ms(answer)[stage] for answer in answers)

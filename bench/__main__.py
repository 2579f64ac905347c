"""`make bench`: bare vLLM and Groundwire side by side, in alternating rounds, with intervals and verdicts.

A whole run writes `docs/performance.json` (all numbers, with their conditions), and the tables and plots made
from it. What a run with `--quick` finds goes to `build/bench`, and so does what `--engine scripted` finds of
scenarios that a language model is part of: it shows that the instrument works, and measures nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.conditions import conditions
from bench.lab import Lab
from bench.report import DOCS, ROOT, publish, save, tables
from bench.scenarios import (
    Scenario,
    conversation,
    grounded,
    ingest_beside,
    ingest_rate,
    memory,
    off,
    overload,
    plan,
    repeat,
    scale,
    search,
    stages,
    start,
    telemetry,
)

#: Names that the tables have already.
OURS = ("Groundwire", "bare vLLM", "bare")
TRIAL = ROOT / "build" / "bench"
#: Those that need no pair of servers come first: an idle engine still takes memory and some cycles.
SCENARIOS = (
    Scenario("ingest-rate", "ingestion beside its own embedder", ingest_rate.run, engine=False),
    Scenario("search", "retrieval over HTTP", search.run, engine=False),
    Scenario("repeat", "a repeated question", repeat.run, engine=False),
    Scenario("scale", "ten times the passages", scale.run, engine=False),
    Scenario("start", "start to the first token", start.run),
    Scenario("memory", "resident memory beside vLLM", memory.run),
    Scenario("stages", "a grounded request, by stage", stages.run),
    Scenario("plan", "`groundwire plan` for this CPU", plan.run),
    Scenario("off", "retrieval off", off.run),
    Scenario("grounded", "grounded, same final prompt", grounded.run),
    Scenario("conversation", "the sixth turn", conversation.run),
    Scenario("telemetry", "telemetry on and off, 32 streams", telemetry.run),
    Scenario("ingest-beside", "a stream during an ingest", ingest_beside.run),
    Scenario("overload", "four times the capacity", overload.run),
)


def main() -> int:
    """Measure, print, save; status 1 when a scenario could not be measured."""
    options = parse()
    # Unwound as by Ctrl-C: the servers that were started end with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="groundwire-bench-") as folder:
        results = asyncio.run(run(options, Path(folder)))
    print(tables(results))
    for target, kept in destinations(results, options).items():
        save(kept, target)
        print(f"\nSaved in {target}", flush=True)
        if target == DOCS:
            publish(ROOT)
    return int(any("error" in entry for entry in results["scenarios"].values()))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run. Exits with status 2 for a bad one."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    add = parser.add_argument
    names = [scenario.name for scenario in SCENARIOS]
    add("--only", type=_names(names), default=names, help=f"some of: {','.join(names)}")
    add("--rounds", type=int, default=5, help="rounds that are kept, of each contender")
    add("--chunks", type=int, default=10_000, help="passages in the store")
    add("--tokens", type=int, default=32, help="tokens of each answer")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    add("--engine", choices=("vllm", "scripted"), default="vllm", help="below both servers")
    add("--quick", action="store_true", help="small and short, to see that it works")
    add("--eager", action="store_true", help="skip compilation; quicker to start")
    add("--vs", type=_pair, action="append", default=[], metavar="NAME=URL")
    add("--vs-model", type=_pair, action="append", default=[], metavar="NAME=MODEL")
    add("--out", type=Path, help=f"save here instead of {DOCS.name}/ or {TRIAL.relative_to(ROOT)}/")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.chunks, options.tokens = min(options.rounds, 2), 300, 8
    if options.rounds < 2:
        parser.error("--rounds: an interval needs two or more")
    others = [name for name, _ in options.vs]
    if len({*others, *OURS}) < len(others) + len(OURS):
        parser.error(f"--vs: each name once, and none of {', '.join(OURS)}")
    if unknown := {name for name, _ in options.vs_model} - set(others):
        parser.error(f"--vs-model: no --vs is named {unknown.pop()!r}")
    return options


def _names(known: list[str]) -> Any:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(f"no scenario {unknown[0]!r}; there are {known}")
        return chosen

    return names


def _pair(text: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not (name and equals and rest):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=VALUE")
    return name, rest


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure what was chosen; a scenario that fails is reported and the others go on."""
    started = time.monotonic()
    done = {}
    async with Lab(options, folder) as lab:
        seen = conditions(ROOT, flags=lab.engine_flags, options=options)
        for scenario in SCENARIOS:
            if scenario.name in options.only:
                print(f"[{time.monotonic() - started:4.0f} s] {scenario.title}", flush=True)
                engine = options.engine if scenario.engine else "scripted"
                entry = await measured(scenario, lab)
                done[scenario.name] = {**entry, "conditions": {**seen, "engine": engine}}
    print(f"[{time.monotonic() - started:4.0f} s] done", flush=True)
    return {"scenarios": done}


async def measured(scenario: Scenario, lab: Lab) -> dict[str, Any]:
    """One scenario as JSON: its figures, or why there are none."""
    start = time.monotonic()
    trial = lab.options.quick or (scenario.engine and lab.scripted)
    entry: dict[str, Any] = {"title": scenario.title, "trial": trial}
    try:
        entry["figures"] = [figure.as_json() for figure in await scenario.run(lab)]
    except Exception as error:  # the others are still worth their numbers
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        entry["error"] = f"{first[:300]}".replace("|", "/")
        print(f"\n  not measured: {error}", file=sys.stderr, flush=True)
    return {**entry, "seconds": round(time.monotonic() - start, 1)}


def destinations(
    results: dict[str, Any], options: argparse.Namespace
) -> dict[Path, dict[str, Any]]:
    """Where which scenarios are saved: what was measured goes to `docs/`, trials to `build/bench`."""
    found: dict[Path, dict[str, Any]] = {}
    for name, entry in results["scenarios"].items():
        target = options.out or (TRIAL if entry["trial"] or "error" in entry else DOCS)
        found.setdefault(target, {"scenarios": {}})["scenarios"][name] = entry
    return found


if __name__ == "__main__":
    sys.exit(main())

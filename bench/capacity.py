"""The tables and the plot of `docs/capacity.md`, computed: `python -m bench.capacity` writes them.

Predictions of `groundwire plan` for all profiles, nothing measured; what was measured beside them comes out of
`docs/performance.json` (`python -m bench --only plan`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.plots import Bar, bars
from bench.report import DOCS, FILE, filled, sentence
from bench.scenarios.plan import CPU_LAYER_SECONDS, FACTOR
from server.capacity.hardware import GIB, GPUS, PRICES_OF, Hardware, gpu
from server.capacity.load import Workload
from server.capacity.planner import CapacityPlan, Subject, plan_capacity
from server.cli.plan import cells
from server.profiles import NAMES, Profile, load_profile

PAGE, PLOT = "capacity.md", "answer-by-profile.svg"
GPU = "A10G"
WORK = Workload(prompt_tokens=1500, output_tokens=200, qps=2.0)
COLUMNS = (
    "weights (GiB)", "keys and values a token (KiB)", "requests at once", "first token (ms)", "a token (ms)",
    "an answer (s)", "requests/s at most", "replicas", "cold start (s)", "$ a month",
)  # fmt: skip
HEAD = f"| profile | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|"
GPU_HEAD = (
    "| GPU | memory | bandwidth | dense 16-bit | sm | Modal, an hour |\n|---|---|---|---|---|---|"
)


def plans() -> list[CapacityPlan]:
    """A plan for each profile on the page's GPU and load."""
    return [plan_capacity(_subject(load_profile(name)), gpu(GPU), WORK) for name in NAMES]


def page(results: Mapping[str, Any]) -> str:
    """What stands between the page's markers; `results` is the bench's JSON."""
    found = plans()
    parts = (
        f"Predicted, on an {GPU}: prompts of {WORK.prompt_tokens} tokens, answers of {WORK.output_tokens}, "
        f"{WORK.qps:g} a second, {WORK.min_containers} container kept warm; Modal's prices of {PRICES_OF}.",
        "\n".join([HEAD, *(f"| {' | '.join(_row(plan))} |" for plan in found)]),
        f"![{PLOT.removesuffix('.svg')}]({PLOT})",
        "\n".join([GPU_HEAD, *(f"| {' | '.join(_gpu_row(one))} |" for one in GPUS)]),
        measured(results),
    )
    return "\n\n".join(parts)


def plot() -> str:
    """Seconds of a whole answer, one request at a time, by profile."""
    rows: Sequence[Bar] = [
        Bar(plan.subject, plan.alone.answer_seconds) for plan in plans() if plan.alone is not None
    ]
    title = f"Predicted on an {GPU}: an answer of {WORK.output_tokens} tokens"
    return bars(title, "s", rows)


def measured(results: Mapping[str, Any]) -> str:
    """What a decoding step took on a CPU beside its prediction, as it was measured."""
    scenario = results["scenarios"].get("plan")
    if scenario is None or "error" in scenario:
        return "Not yet measured beside a real engine."
    (figure,) = (one for one in scenario["figures"] if one["compared"] == "ratio")
    (_, seen), (_, predicted) = figure["rounds"].items()
    estimate = figure["estimate"]
    return (
        f"{sentence(scenario)} A token took {median(seen):.1f} ms where the roofline predicts "
        f"{median(predicted):.1f} ms (the weights read with the bandwidth measured in the same round, and "
        f"{CPU_LAYER_SECONDS * 1000:g} ms a layer, fitted on such a CPU): {estimate['value']:.2f} times "
        f"({estimate['low']:.2f} - {estimate['high']:.2f}); at most {FACTOR:g} times is what this page promises."
    )


def _subject(profile: Profile) -> Subject:
    return Subject(profile.name, profile.model, profile.architecture, profile.vllm_args)


def _row(plan: CapacityPlan) -> list[str]:
    name, *rest = cells(plan)
    return [f"`{name}`", *rest]


def _gpu_row(one: Hardware) -> list[str]:
    assert one.capability is not None
    return [
        one.name,
        f"{one.memory_bytes / GIB:.1f} GiB",
        f"{one.bandwidth / 1e9:,.0f} GB/s",
        f"{one.flops / 1e12:,.0f} TFLOP/s",
        "".join(map(str, one.capability)),
        f"${one.dollars_per_second * 3600:.2f}",
    ]


def main() -> None:
    """Write the page's tables and its plot."""
    results = json.loads((DOCS / FILE).read_text(encoding="utf-8"))
    (DOCS / PLOT).write_text(plot(), encoding="utf-8")
    path = DOCS / PAGE
    path.write_text(filled(path.read_text(encoding="utf-8"), page(results)), encoding="utf-8")


if __name__ == "__main__":
    main()

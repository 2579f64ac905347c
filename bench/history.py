"""A question by stage, before and after: the figures that this project began with, and the measured ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

#: What one question took on Modal with an A10G, as its user told it; nothing that we measured.
BEFORE = {
    "loading the model": "30-45 s",
    "embedding": "in the total",
    "retrieval": "2-5 s",
    "inference": "15-30 s",
    "total": "more than a minute",
}
#: Ours by the stages of the `stages` scenario, which are milliseconds.
PARTS = {
    "embedding": ("embed",),
    "retrieval": ("lexical", "search", "fuse", "pack"),
    "inference": ("queue", "prefill", "decode"),
}
HEAD = "| stage of one question | before | now |\n|---|---|---|"


def before_and_after(results: Mapping[str, Any]) -> str:
    """A section with the table and what it was measured on; empty where the stages were not measured."""
    scenario = results["scenarios"].get("stages", {})
    if not scenario.get("figures"):
        return ""
    stages = {one["name"]: _median(one) for one in scenario["figures"]}
    now = {part: sum(stages.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    cells = {
        "loading the model": f"none: once a start{_start(results)}",
        **{part: _seconds(ms) for part, ms in now.items()},
        "total": _seconds(sum(stages.values())),
    }
    table = [f"| {part} | {BEFORE[part]} | {cells[part]} |" for part in BEFORE]
    return "\n".join(
        [
            "## A question, before and after",
            "",
            *_where(scenario),
            "",
            HEAD,
            *table,
            "",
            "## All figures",
        ]
    )


def _where(scenario: Mapping[str, Any]) -> list[str]:
    seen = scenario["conditions"]
    return [
        "*Before* is what the user who began this project told of theirs: Mistral-7B on an A10G at Modal, the model "
        "loaded for a question,",
        f"Chroma far away. *Now* was measured on {seen['cores']} cores of {seen['cpu']} with {seen['model']}, an "
        "answer of 16 tokens,",
        "the stages added up. It is another model on another machine, so only loading, embedding and retrieval can be "
        "compared. What an",
        "A10G would do is a prediction, in `docs/capacity.md`.",
    ]


def _start(results: Mapping[str, Any]) -> str:
    figures: Sequence[Mapping[str, Any]] = results["scenarios"].get("start", {}).get("figures", ())
    found = [one for one in figures if one["name"] == "start to the first token"]
    return f", {_median(found[0]):.0f} s" if found else ""


def _median(figure: Mapping[str, Any]) -> float:
    return float(median(figure["rounds"]["Groundwire"]))


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.1f} s" if ms >= 100 else f"{ms:.1f} ms"

"""The table in docs/quality.md says what docs/quality.json, the command's own output, says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
METRICS = ("recall@1", "recall@4", "recall@10", "ndcg@10", "mrr@10")


def cell(way: dict[str, Any], metric: str) -> str:
    low, high = way["interval_95"][metric]
    return f"{way[metric]:.3f} ({low:.3f}-{high:.3f})"


def table(measured: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One row for each data set and way of searching."""
    lines = [f"| data set | | {' | '.join(METRICS)} |", "|" + "---|" * (len(METRICS) + 2)]
    for name, ways in measured.items():
        for way, figures in ways.items():
            cells = " | ".join(cell(figures, metric) for metric in METRICS)
            lines.append(f"| {name} | {way} | {cells} |")
    return "\n".join(lines)


def test_the_table_is_the_command_s_output() -> None:
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
    assert shown == table(json.loads((DOCS / "quality.json").read_text(encoding="utf-8")))

"""The plots of `docs/performance.md`: horizontal bars as SVG, from the bench's JSON. Pure but for `save_plots`.

Colours follow the reader's light or dark scheme, which an image may ask for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.figures import BEGAN

WIDTH, LEFT, RIGHT, TOP, ROW = 640, 190, 80, 36, 22
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}.a{fill:#0969da}.b{fill:#8c959f}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.a{fill:#4493f8}.b{fill:#768390}}"
)


class Bar(NamedTuple):
    """One row; `plain` draws it in grey, as the thing compared with. A bar may begin elsewhere than at zero."""

    label: str
    value: float
    plain: bool = False
    begin: float = 0.0


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """An SVG of the rows in their order, the bar that ends last reaching as far as there is room."""
    scale = (WIDTH - LEFT - RIGHT) / (max(row.begin + row.value for row in rows) or 1.0)
    height = TOP + ROW * len(rows) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f'<style>{STYLE}</style><text class="t" x="8" y="20">{escape(title)} ({escape(unit)})</text>',
    ]
    for number, row in enumerate(rows):
        y, x, width = TOP + ROW * number, LEFT + scale * row.begin, max(scale * row.value, 1)
        lines.append(
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row.label)}</text>'
            f'<rect class="{"b" if row.plain else "a"}" x="{x:g}" y="{y + 1}" width="{width:.1f}" '
            f'height="{ROW - 6}" rx="2"/>'
            f'<text x="{x + width + 6:.1f}" y="{y + 13}">{row.value:.3g}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def plots(results: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG, for every plot whose scenario has been measured."""
    drawn = {}
    for file, scenario, title, unit, rows_of in PLOTS:
        figures = results["scenarios"].get(scenario, {}).get("figures", [])
        rows = rows_of(figures)
        if rows:
            drawn[file] = bars(title, unit, rows)
    return drawn


def save_plots(results: Mapping[str, Any], folder: Path) -> None:
    for file, svg in plots(results).items():
        (folder / file).write_text(svg)


def _values(figures: Sequence[Mapping[str, Any]]) -> list[Bar]:
    return [
        Bar(figure["name"], figure["estimate"]["value"])
        for figure in figures
        if figure["compared"] == "value"
    ]


def _stages(figures: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What comes before the engine: beside its prefill nothing else could be seen."""
    return [bar for bar in _values(figures) if bar.label not in ("queue", "prefill", "decode")]


def _steps(figures: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Each step from where it begins: what stands above and below one another ran side by side."""
    return [
        Bar(
            figure["name"].removeprefix("of that "),
            median(figure["rounds"]["Groundwire"]),
            begin=median(figure["rounds"][BEGAN]),
        )
        for figure in figures
        if BEGAN in figure["rounds"]
    ]


def _throughput(figures: Sequence[Mapping[str, Any]]) -> list[Bar]:
    rows = []
    seen = set()
    for figure in figures:
        if figure["name"] == "throughput":
            for side, rounds in figure["rounds"].items():
                bar = Bar(
                    f"{side}, {figure['at_once']} at once", median(rounds), side != "Groundwire"
                )
                if bar.label not in seen:  # Groundwire is in the comparison with each contender
                    seen.add(bar.label)
                    rows.append(bar)
    return rows


PLOTS = (
    ("latency-by-stage.svg", "stages", "A grounded request before the engine", "ms", _stages),
    ("throughput.svg", "off", "Throughput by concurrency", "tokens/s", _throughput),
    ("start-by-step.svg", "start", "From the process to the first token", "s", _steps),
    ("retrieval-by-size.svg", "scale", "Retrieval by collection size", "ms", _values),
)

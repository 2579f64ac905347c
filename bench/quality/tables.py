"""From `docs/quality.json` to the tables of `docs/quality.md`: `python -m bench.quality.tables`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import ROOT, filled

FILE = Path("docs", "quality.json")
PAGE = Path("docs", "quality.md")
METRICS = ("recall@1", "recall@4", "recall@10", "ndcg@10", "mrr@10")
TRIED = ("recall@4", "ndcg@10")
Entry = Mapping[str, Any]


def publish(root: Path) -> None:
    """Write the page's tables from the saved JSON. Raises ValueError when the page has no place for them."""
    saved = json.loads((root / FILE).read_text(encoding="utf-8"))
    page = root / PAGE
    page.write_text(rendered(page.read_text(encoding="utf-8"), saved), encoding="utf-8")


def rendered(page: str, saved: Mapping[str, Any]) -> str:
    """The page with both tables as the JSON has them."""
    for name, text in (("table", measured(saved["measured"])), ("tried", tried(saved["tried"]))):
        page = filled(page, text, f"<!-- {name} -->", f"<!-- /{name} -->")
    return page


def measured(sets: Mapping[str, Mapping[str, Entry]]) -> str:
    """What `groundwire eval` says: one row for each data set and way of searching."""
    lines = _head("data set", "", *METRICS)
    for name, ways in sets.items():
        for way, figures in ways.items():
            cells = (
                _cell((figures[metric], *figures["interval_95"][metric])) for metric in METRICS
            )
            lines.append(_row(name, way, *cells))
    return "\n".join(lines)


def tried(saved: Mapping[str, Any]) -> str:
    """The conditions, then one table for each set."""
    return "\n\n".join([_sentence(saved["conditions"]), *_sets(saved["sets"])])


def verdict(difference: Mapping[str, Sequence[float]]) -> str:
    """ "better" or "worse" where an interval without 0 says so and no other one says the opposite."""
    gains = any(low > 0 for _, low, _ in difference.values())
    losses = any(high < 0 for _, _, high in difference.values())
    if gains and losses:
        return "both"
    return "better" if gains else "worse" if losses else ""


def _sets(sets: Mapping[str, Entry]) -> Iterator[str]:
    for name, found in sets.items():
        lines = _head(
            f"{name} ({found['questions']} questions)",
            *TRIED,
            *(f"{metric}, difference" for metric in TRIED),
            "",
        )
        lines += [_tried(variant, entry) for variant, entry in found["variants"].items()]
        yield "\n".join(lines)


def _tried(name: str, entry: Entry) -> str:
    values = [_cell(entry[metric]) for metric in TRIED]
    difference = entry.get("difference")
    if difference is None:
        return _row(name, *values, *("" for _ in TRIED), "")
    shown = [_difference(difference[metric]) for metric in TRIED]
    return _row(name, *values, *shown, verdict(difference))


def _sentence(seen: Entry) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in seen["versions"].items())
    changes = " with changes" if seen["dirty"] else ""
    return (
        f"Measured {seen['date']} with {seen['embedder']} ({seen['embedder_backend']}) on {seen['cpu']} ({versions}); "
        f"commit {seen['commit']}{changes}."
    )


def _cell(estimate: Sequence[float]) -> str:
    mean, low, high = estimate
    return f"{mean:.3f} ({low:.3f}-{high:.3f})"


def _difference(estimate: Sequence[float]) -> str:
    mean, low, high = estimate
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    publish(ROOT)

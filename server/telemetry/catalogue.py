"""The table of all metrics in `docs/metrics.md`: `python -m server.telemetry.catalogue docs/metrics.md` writes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from server.telemetry.definitions import Definition
from server.telemetry.metrics import Metrics, new_registry

#: The lines of the page between which the table stands.
START, END = "<!-- metrics: start -->", "<!-- metrics: end -->"


def table(definitions: Sequence[Definition]) -> str:
    """The metrics as a Markdown table."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in definitions
    ]
    return "\n".join(["| metric | kind | labels | what |", "|---|---|---|---|", *rows])


def with_table(page: str, definitions: Sequence[Definition]) -> str:
    """The page with this table between its marks. Raises ValueError where it has none."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page needs the lines {START} and {END}")
    return f"{before}{START}\n{table(definitions)}\n{END}{after}"


def main(path: Path) -> None:
    path.write_text(with_table(path.read_text(), Metrics(new_registry()).definitions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

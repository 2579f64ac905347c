"""CSV and JSON to text in which every value stands beside its name. Pure."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"[-+]?[\d.,]+%?$")


def csv_text(text: str, delimiter: str | None = None) -> str:
    """One block of `column: value` lines for each row, with a blank line between rows.

    The first row names the columns if its cells are different and none is empty or a number. The
    delimiter is the one of comma, semicolon, tab and bar that the first line has most of.
    Raises ValueError for a file that is no CSV (a quote that never ends, a cell of over 128 KiB).
    """
    reader = csv.reader(
        text.splitlines(keepends=True), delimiter=delimiter or _delimiter(text), strict=True
    )
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if len(rows) > 1 and _names_columns(rows[0]):
        return "\n\n".join(_row(rows[0], row) for row in rows[1:])
    return "\n\n".join(_row((), row) for row in rows)


def json_text(text: str) -> str:
    """`path: value` lines, with a blank line between the items of a list at the top.

    Raises ValueError, naming line and column, for a text that is no JSON.
    """
    value = _parse(text)
    items = value if isinstance(value, list) else [value]
    return "\n\n".join("\n".join(_lines("", item)) for item in items)


def jsonl_text(text: str) -> str:
    """As `json_text`, for one value a line. Raises ValueError naming the line."""
    blocks = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                blocks.append("\n".join(_lines("", _parse(line))))
            except ValueError as error:
                raise ValueError(f"line {number} of the file: {error}") from error
    return "\n\n".join(blocks)


def _delimiter(text: str) -> str:
    first_line = text.lstrip().partition("\n")[0]
    # Not csv.Sniffer: some texts keep its patterns busy for hours.
    return max(_DELIMITERS, key=first_line.count)


def _names_columns(row: Sequence[str]) -> bool:
    names = [cell.strip() for cell in row]
    return (
        all(names)
        and len(set(names)) == len(names)
        and not any(_NUMBER.match(name) for name in names)
    )


def _row(columns: Sequence[str], row: Sequence[str]) -> str:
    named = [*columns, *(f"column {n}" for n in range(len(columns) + 1, len(row) + 1))]
    cells = zip(named, row, strict=False)
    return "\n".join(f"{name.strip()}: {cell.strip()}" for name, cell in cells if cell.strip())


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _lines(path: str, value: Any) -> Iterator[str]:
    children: Iterable[tuple[str, Any]]
    if isinstance(value, dict) and value:
        children = ((f"{path}.{key}" if path else key, child) for key, child in value.items())
    elif isinstance(value, list) and value:
        children = ((f"{path}[{n}]", child) for n, child in enumerate(value))
    else:
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"{path}: {shown}" if path else shown
        return
    for child_path, child in children:
        yield from _lines(child_path, child)

"""A golden file: questions, and where each of them is answered, in words that survive a new ingest.

Ids of passages change with each version of a file; its name, its headings and what stands in it mostly do not.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from retrieval.types import Passage
from server.wire.common import first_complaint
from server.wire.golden import GoldenRow

#: A heading within a passage: small sections are joined, with their headings as Markdown.
_HEADING = re.compile(r"^#{1,6}\s+(.+)$", re.MULTILINE)


class GoldenError(Exception):
    """A golden file cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The passages that answer a question: those for which all that is not None holds.

    `file` is a file's name, or the end of it after a `/`; `heading` stands above the passage or in it;
    `passage` is a part of its text. White space and upper case count for nothing in these two.
    """

    file: str | None = None
    heading: str | None = None
    passage: str | None = None

    def matches(self, passage: Passage) -> bool:
        if self.file is not None and not f"/{passage.filename}".endswith(f"/{self.file}"):
            return False
        if self.heading is not None:
            wanted = _plain(self.heading)
            if all(_plain(heading) != wanted for heading in headings_of(passage)):
                return False
        return self.passage is None or _plain(self.passage) in _plain(passage.text)

    def __str__(self) -> str:
        parts = (self.file, self.heading, self.passage and f"“{self.passage}”")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """One line of a golden file."""

    text: str
    expected: Expected


def read_golden(path: Path) -> tuple[GoldenQuestion, ...]:
    """The questions of a golden file, at least one. Blocks. Raises GoldenError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise GoldenError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GoldenError(f"{path}: not UTF-8 ({error})") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise GoldenError(f"{path}: holds no questions; `groundwire canary init` proposes some")
    return tuple(_question(f"{path}, line {number}", line) for number, line in numbered)


def golden_line(question: GoldenQuestion) -> str:
    """The question as a line of a golden file."""
    row = {"text": question.text, **asdict(question.expected)}
    return json.dumps(
        {name: value for name, value in row.items() if value is not None}, ensure_ascii=False
    )


def headings_of(passage: Passage) -> tuple[str, ...]:
    """The headings above a passage, then those in it."""
    return (*passage.headings, *(match.strip() for match in _HEADING.findall(passage.text)))


def _question(where: str, line: str) -> GoldenQuestion:
    try:
        row = GoldenRow.model_validate_json(line)
    except ValidationError as error:
        message, _ = first_complaint(error)
        raise GoldenError(f"{where}: {message}") from None
    return GoldenQuestion(row.text, Expected(row.file, row.heading, row.passage))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())

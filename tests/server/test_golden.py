"""Golden files: what a line says, what it matches, and what is said of a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retrieval.types import Passage
from server.golden import Expected, GoldenError, GoldenQuestion, golden_line, read_golden

LOANS = Passage(
    "file-1",
    "0" * 64,
    0,
    "rules/handbook.md",
    "A loan lasts at most\nthirty days.\n\n## Late  returns\n\nThey cost ten pence.",
    title="Reading room",
    headings=("Reading room", "Loans"),
)


@pytest.mark.parametrize(
    ("expected", "matches"),
    [
        (Expected("handbook.md"), True),
        (Expected("rules/handbook.md"), True),
        (Expected("book.md"), False),
        (Expected("other/handbook.md"), False),
        (Expected("handbook.md", heading="loans"), True),
        (Expected("handbook.md", heading="Late returns"), True),
        (Expected("handbook.md", heading="Loan"), False),
        (Expected("handbook.md", passage="at most THIRTY  days"), True),
        (Expected(passage="thirty days"), True),
        (Expected("handbook.md", passage="forty days"), False),
        (Expected("tea.txt", passage="thirty days"), False),
    ],
)
def test_all_that_is_named_must_hold(expected: Expected, matches: bool) -> None:
    assert expected.matches(LOANS) is matches


def test_what_is_written_is_read(tmp_path: Path) -> None:
    questions = (
        GoldenQuestion("How long is a loan?", Expected("handbook.md", "Loans")),
        GoldenQuestion("Wie heiß, “Tee”?", Expected(passage='eighty\n"degrees"')),
    )
    path = tmp_path / "golden.jsonl"
    path.write_text("\n\n".join(map(golden_line, questions)) + "\n", encoding="utf-8")
    assert read_golden(path) == questions
    assert "heiß" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no questions; `groundwire canary init`"),
        ("\n{", "line 2: Invalid JSON"),
        ("[]", "line 1: "),
        ('{"file": "a.md"}', "line 1: text: Field required"),
        ('{"text": " ", "file": "a.md"}', "line 1: text: "),
        ('{"text": "x", "heading": "y"}', "line 1: names neither the file nor words of the passage"),
        ('{"text": "x", "flie": "a.md"}', "line 1: flie: no such field"),
        ('{"text": "x", "file": 1}', "line 1: file: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text(content)
    with pytest.raises(GoldenError, match=re.escape(complaint)):
        read_golden(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=r"golden.jsonl: No such file"):
        read_golden(tmp_path / "golden.jsonl")
    (tmp_path / "golden.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(GoldenError, match="not UTF-8"):
        read_golden(tmp_path / "golden.jsonl")

"""Which series and labels an expression of PromQL names; no parser, but enough for the expressions of `grafana/`."""

from __future__ import annotations

import re
from dataclasses import dataclass

MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w:])([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?(?![\w:]*\s*\()")
WORDS = frozenset(
    {"and", "or", "unless", "bool", "offset", "by", "on", "ignoring", "group_left", "inf", "nan"}
)


@dataclass(frozen=True)
class Selector:
    """A series that is asked for, and its matchers by label."""

    series: str
    matchers: dict[str, str]


def selectors(expr: str) -> list[Selector]:
    """The series that the expression asks for."""
    bare = re.sub(r"\[[^\]]*\]", "", GROUPING.sub(" ", expr))
    return [
        Selector(name, dict(MATCHER.findall(matchers)))
        for name, matchers in SELECTOR.findall(bare)
        if name not in WORDS
    ]


def grouped(expr: str) -> set[str]:
    """The labels by which it groups or matches."""
    return {label.strip() for inner in GROUPING.findall(expr) for label in inner.split(",")} - {""}

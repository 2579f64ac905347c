"""The scenarios: each a small unit that measures one thing and says what it should be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.figures import Figure
from bench.lab import Lab


@dataclass(frozen=True, slots=True)
class Scenario:
    """One measurement: the name that `--only` takes, a title for the table, and the work.

    `engine` says whether a language model is part of what is measured: where it is not, a scripted one
    below the server changes nothing, and the numbers count with it too.
    """

    name: str
    title: str
    run: Callable[[Lab], Awaitable[list[Figure]]]
    engine: bool = True

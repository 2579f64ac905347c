"""How long an ingest's steps take: read once at its end, as a request's trace is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

#: In their order: a file's bytes become text, text becomes chunks, chunks vectors, vectors go to Chroma, and one
#: commit of the keyword index shows them.
STEPS = ("load", "chunk", "embed", "write", "commit")


class Steps:
    """Collects how long each step took, each time; used by one ingest."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block as step `name`, whatever way it ends. Raises ValueError for a name that is no step."""
        if name not in STEPS:
            raise ValueError(f"unknown step {name!r}; steps are {', '.join(STEPS)}")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name].append(time.perf_counter() - start)

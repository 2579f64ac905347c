"""What all ingests of a data directory have done, kept in a file there: an ingest is a process of its own.

The ingest adds to it while it holds the lock of the directory; servers read it for their `/metrics`. For a published
index it stands beside the versions.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from server.telemetry.buckets import INGEST_STEP, Buckets

FILE = "ingests.json"
#: How a run ends: `partial` is one in which some files could not be read, and the others are in the store.
RUN_OUTCOMES = ("ok", "partial", "failed", "cancelled")
FILE_OUTCOMES = ("added", "replaced", "unchanged", "removed", "failed")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """How long one step took: `counts` of each bucket (the last: beyond all bounds), and the sum in seconds."""

    counts: tuple[int, ...] = (0,) * (len(INGEST_STEP) + 1)
    sum_seconds: float = 0.0
    bounds: Buckets = INGEST_STEP

    def plus(self, seconds: Sequence[float]) -> StepTotals:
        counts = list(self.counts)
        for each in seconds:
            counts[bisect_left(self.bounds, each)] += 1
        return StepTotals(tuple(counts), self.sum_seconds + sum(seconds), self.bounds)


@dataclass(frozen=True, slots=True)
class IngestTotals:
    """Runs and files by outcome, steps by name, and when a run last came to its end (Unix seconds; 0: never)."""

    runs: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, StepTotals] = field(default_factory=dict)
    last_success: float = 0.0

    def plus(
        self,
        outcome: str,
        files: Mapping[str, int],
        steps: Mapping[str, Sequence[float]],
        now: float,
    ) -> IngestTotals:
        """The totals with one more run, which ended with `outcome` at `now`."""
        added = {
            name: self.steps.get(name, StepTotals()).plus(taken) for name, taken in steps.items()
        }
        return replace(
            self,
            runs={**self.runs, outcome: self.runs.get(outcome, 0) + 1},
            files={**self.files, **{k: self.files.get(k, 0) + n for k, n in files.items()}},
            steps={**self.steps, **added},
            last_success=now if outcome in ("ok", "partial") else self.last_success,
        )


def read_totals(directory: Path) -> IngestTotals:
    """What is kept in the directory; nothing where there is no file, or one that is not ours to understand."""
    try:
        kept: dict[str, Any] = json.loads((directory / FILE).read_bytes())
        steps = {
            name: StepTotals(tuple(each["counts"]), each["sum_seconds"], tuple(each["bounds"]))
            for name, each in kept["steps"].items()
        }
        totals = IngestTotals(kept["runs"], kept["files"], steps, kept["last_success"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return IngestTotals()
    # Counts of other buckets cannot be gone on with: those steps begin anew, as a counter may.
    return replace(totals, steps={n: s for n, s in steps.items() if s.bounds == INGEST_STEP})


def write_totals(directory: Path, totals: IngestTotals) -> None:
    """Keep the totals, in one step: who reads meanwhile sees the ones before. Raises OSError."""
    fresh = directory / f"{FILE}.new"
    fresh.write_text(json.dumps(asdict(totals)))
    os.replace(fresh, directory / FILE)

"""The one record of where a request's time went; histogram, spans, `Server-Timing` and receipt read it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

from retrieval.errors import DeadlineExceeded

#: Every stage label, in pipeline order. A stage's name is its module, metric label, span and dashboard row.
STAGES = (
    "plan",
    "embed",
    "lexical",
    "search",
    "fuse",
    "rerank",
    "pack",
    "inject",
    "queue",
    "prefill",
    "decode",
    "weave",
)


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One run of one stage. `start_seconds` is relative to the trace's start; `outcome` is ok, error, timeout or
    cancelled."""

    stage: str
    start_seconds: float
    duration_seconds: float
    outcome: str


class Trace:
    """Collects stage records; append-only, one per request, used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self.records: list[StageRecord] = []
        #: What came out of a cache, where its stages did not run: `embedding`, `retrieval`, `answer`.
        self.cached: list[str] = []
        self._over: Callable[[], bool] = lambda: False

    def limited(self, over: Callable[[], bool]) -> Trace:
        """The same records, for a block with a time limit: a stage that is cancelled once it is `over` ran into it."""
        within, before = copy(self), self._over
        within._over = lambda: over() or before()
        return within

    def elapsed_seconds(self) -> float:
        return self._clock() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as stage `name`, whatever way it ends."""
        start = self.elapsed_seconds()
        outcome = "ok"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "timeout" if self._over() else "cancelled"
            raise
        except (TimeoutError, DeadlineExceeded):
            outcome = "timeout"
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            self.record(name, self.elapsed_seconds() - start, start_seconds=start, outcome=outcome)

    def record(
        self, name: str, seconds: float, *, start_seconds: float | None = None, outcome: str = "ok"
    ) -> None:
        """Add a stage measured elsewhere (the engine's own queue, prefill and decode).

        Raises ValueError for a name that is no stage: labels are a closed set.
        """
        if name not in STAGES:
            raise ValueError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
        start = self.elapsed_seconds() - seconds if start_seconds is None else start_seconds
        self.records.append(StageRecord(name, start, seconds, outcome))

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage, in pipeline order; a stage that ran twice is added up."""
        totals: dict[str, float] = {}
        for record in self.records:
            totals[record.stage] = totals.get(record.stage, 0.0) + record.duration_seconds * 1000
        return {stage: round(totals[stage], 3) for stage in STAGES if stage in totals}

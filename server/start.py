"""The one record of where a start's time went: steps, some beside others, up to the first token."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Every step label, in the order in which steps begin. What an engine or a setting has no use for is left out.
STEPS = (
    "imports",
    "wake",
    "model_files",
    "engine_imports",
    "engine",
    "index_copy",
    "catalog",
    "chroma",
    "embedder",
    "index",
    "reranker",
    "engine_app",
    "warm_up",
    "first_token",
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a start. `start_seconds` is relative to the start's beginning."""

    step: str
    start_seconds: float
    duration_seconds: float

    @property
    def end_seconds(self) -> float:
        return self.start_seconds + self.duration_seconds

    def beside(self, other: StepRecord) -> bool:
        """Whether both ran at the same time."""
        return self.start_seconds < other.end_seconds and other.start_seconds < self.end_seconds


class StartTrace:
    """Collects the steps of one start; steps may end in several threads.

    `began` is when the start began, in the clock's time: now, unless it is told.
    """

    def __init__(
        self, began: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began = clock() if began is None else began
        self.records: list[StepRecord] = []

    def elapsed_seconds(self) -> float:
        return self._clock() - self._began

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block as step `name`; one that fails is no step."""
        start = self.elapsed_seconds()
        yield
        self.record(name, since=start)

    def record(self, name: str, *, since: float = 0.0) -> None:
        """Add a step that ends now and began `since` seconds after the start.

        Raises ValueError for a name that is no step: labels are a closed set.
        """
        if name not in STEPS:
            raise ValueError(f"unknown step {name!r}; steps are {', '.join(STEPS)}")
        self.records.append(StepRecord(name, since, self.elapsed_seconds() - since))

    @property
    def total_seconds(self) -> float:
        """From the beginning to the end of the last step."""
        return max((record.end_seconds for record in self.records), default=0.0)


def described(records: Iterable[StepRecord]) -> list[str]:
    """A line a step, in the order in which they began: when, how long, and what ran beside it."""
    ordered = sorted(records, key=lambda record: (record.start_seconds, -record.duration_seconds))
    return [_line(record, ordered) for record in ordered]


def _line(record: StepRecord, ordered: Sequence[StepRecord]) -> str:
    beside = [other.step for other in ordered if other is not record and record.beside(other)]
    line = f"{record.step:<15} from {record.start_seconds:5.1f} s, {record.duration_seconds:5.1f} s"
    return f"{line}  beside {', '.join(beside)}" if beside else line


def process_began() -> float:
    """When this process began, in the time of `time.monotonic`: before Python, where the system tells; else now.

    Linux keeps it in clock ticks since the machine's own start, the 22nd field of `/proc/self/stat` (proc(5)).
    A process that a shell became by `exec` began when the shell did.
    """
    try:
        # The second field is the program's name in brackets, which may hold spaces and brackets.
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        # Both clocks one after the other: what came between them would count as the process's age.
        uptime, now = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
    except (OSError, AttributeError, IndexError):
        return time.monotonic()
    age = uptime - int(ticks) / os.sysconf("SC_CLK_TCK")
    return now - max(age, 0.0)

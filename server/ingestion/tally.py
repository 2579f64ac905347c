"""One ingest's numbers, added to those of the ingests before when it ends, whatever way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.ingest.steps import Steps
from server.ingestion.report import IngestEvent
from server.ingestion.run import OnEvent
from server.telemetry.ingests import FILE_OUTCOMES, read_totals, write_totals

log = logging.getLogger(__name__)


class Tally:
    """Hears an ingest's events, which it hands on, and times its `steps`."""

    def __init__(self, on_event: OnEvent) -> None:
        self.steps = Steps()
        self._on_event = on_event
        self._files: Counter[str] = Counter()

    def hear(self, event: IngestEvent) -> None:
        if event.kind in FILE_OUTCOMES:
            self._files[event.kind] += 1
        self._on_event(event)

    @contextmanager
    def kept_in(self, directory: Path) -> Iterator[None]:
        """Keep what is heard while the block runs, and how it ends. The caller holds the directory's lock."""
        outcome = "failed"
        try:
            yield
            outcome = "partial" if self._files["failed"] else "ok"
        except (asyncio.CancelledError, KeyboardInterrupt):
            outcome = "cancelled"
            raise
        finally:
            totals = read_totals(directory)
            added = totals.plus(outcome, self._files, self.steps.seconds, time.time())
            try:
                write_totals(directory, added)
            except OSError as error:  # the documents matter more than their count
                log.warning("what this ingest did is not counted: %s", error)

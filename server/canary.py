"""The canary: golden questions asked of the index again and again, as requests ask theirs, without an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from retrieval.lexical import LexicalIndex
from retrieval.quality import DEPTH, RECALL_RANKS, score
from retrieval.remember import Retrieves
from retrieval.trace import Trace
from retrieval.types import Query
from server.auth import tenants_that_ask
from server.catalog import LOCAL_TENANT, Catalog, CatalogError, Store, StoreNotFound
from server.golden import Expected, GoldenError, GoldenQuestion, read_golden
from server.handover import Handover
from server.queries import MAX_QUERY_CHARACTERS
from server.settings import Settings, SettingsError
from server.telemetry.index import store_labels
from server.telemetry.metrics import OTHER, Metrics

log = logging.getLogger(__name__)

#: How often the index is looked at for a change.
LOOK_SECONDS = 5.0
#: After each question its time is rested this often: requests lose a tenth of one core at most.
REST = 9
#: The rank that `canary_min_recall` is about: as many passages as a request gets by default.
WATCHED_RANK = 4
#: Files that are named in one line of the log.
MOST_NAMED = 5

Outcome = Literal["found", "missed", "gone"]
OUTCOMES: tuple[Outcome, ...] = ("found", "missed", "gone")
_PLACES = tuple(str(place) for place in range(1, DEPTH + 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: the rank, from 1 to DEPTH, of the first passage that answers it.

    Without a rank it was `missed`, or what it expects is `gone` from the store. `seconds` is the search alone.
    """

    question: GoldenQuestion
    outcome: Outcome
    rank: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """One run: the mean recall at each of RECALL_RANKS, the mean reciprocal rank, and what they are the means of."""

    recall: Mapping[int, float]
    mrr: float
    answers: tuple[Answer, ...]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many questions had each outcome."""
        counted = Counter(answer.outcome for answer in self.answers)
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def gone(self) -> list[Expected]:
        """What is expected and no longer there."""
        return [answer.question.expected for answer in self.answers if answer.outcome == "gone"]


def report_of(answers: Sequence[Answer]) -> Report:
    """The means over the answers, of which there is at least one; a question without a rank counts 0."""
    scores = [score(_PLACES, {str(answer.rank)}) for answer in answers]
    return Report(
        {k: fmean(each[f"recall@{k}"] for each in scores) for k in RECALL_RANKS},
        fmean(each[f"mrr@{DEPTH}"] for each in scores),
        tuple(answers),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What questions to one store are asked through: a retriever without caches, with the bounds of requests."""

    retriever: Retrieves
    lexical: LexicalIndex
    index_name: str
    min_similarity: float
    timeout_seconds: float | None

    async def ask(self, question: GoldenQuestion) -> Answer:
        """Search for a question as a request would. Raises RetrievalError."""
        text = question.text[:MAX_QUERY_CHARACTERS]
        began = time.perf_counter()
        found = await self.retriever.retrieve(
            Query(text, (self.index_name,), DEPTH), Trace(), until=_until(self.timeout_seconds)
        )
        seconds = time.perf_counter() - began
        best = found.best_similarity
        # A request gets nothing of what is below it.
        low = best is not None and best < self.min_similarity
        ranked = () if low else found.candidates[:DEPTH]
        matches = question.expected.matches
        ranks = (rank for rank, one in enumerate(ranked, start=1) if matches(one.passage))
        rank = next(ranks, None)
        if rank is not None:
            return Answer(question, "found", rank, seconds)
        there = await asyncio.to_thread(self._holds, question.expected)
        return Answer(question, "missed" if there else "gone", None, seconds)

    def _holds(self, expected: Expected) -> bool:
        """Whether the store has a passage that answers; by name where there is one, as the fewest have it. Blocks."""
        if expected.file is not None:
            found = self.lexical.containing(self.index_name, expected.file, "title")
        else:
            found = self.lexical.containing(self.index_name, expected.passage or "", "text")
        return any(map(expected.matches, found))


def _until(timeout_seconds: float | None) -> float | None:
    """When what begins now must be over, in the event loop's time."""
    return None if timeout_seconds is None else asyncio.get_running_loop().time() + timeout_seconds


async def store_to_probe(catalog: Catalog, ref: str) -> Store:
    """The store of this id, whichever tenant's, or the tenant `local`'s of this name.

    Raises StoreNotFound, AmbiguousStore.
    """
    try:
        return await catalog.find_store(LOCAL_TENANT, ref)
    except StoreNotFound:
        for store in await catalog.every_store():
            if store.id == ref:
                return store
        raise


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """What the canary needs to know; `store` is an id or a name, `readers` are the tenants that may read metrics."""

    file: Path
    store: str
    seconds: float
    min_recall: float | None
    min_similarity: float
    timeout_seconds: float
    readers: frozenset[str]


def canary_settings(settings: Settings) -> CanarySettings | None:
    """None where no golden file is set. Reads it once, so that a mistake in it stops the start. Blocks.

    Raises SettingsError.
    """
    if settings.canary_file is None:
        return None
    store = settings.canary_store or settings.default_store
    if not store:
        raise SettingsError("canary_file: needs canary_store, or a default_store to ask")
    try:
        read_golden(settings.canary_file)
    except GoldenError as error:
        raise SettingsError(f"canary_file: {error}") from error
    return CanarySettings(
        file=settings.canary_file,
        store=store,
        seconds=settings.canary_seconds,
        min_recall=settings.canary_min_recall,
        min_similarity=settings.min_similarity,
        timeout_seconds=settings.retrieval_timeout_seconds,
        readers=tenants_that_ask(settings.api_keys),
    )


class Canary:
    """Asks the golden file's questions every `canary_seconds`, and when the index has moved and come to rest.

    Each run reads the file anew. A run that fails leaves the values of the one before; one that a newer version of
    the index overtakes is given up for a run on that.
    """

    def __init__(
        self,
        handover: Handover,
        metrics: Metrics,
        settings: CanarySettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._handover = handover
        self._metrics = metrics
        metrics.canary_period_seconds = settings.seconds
        metrics.canary_min_recall = settings.min_recall
        self._clock = clock
        self._due = float("-inf")
        self._seen: Hashable | None = None
        self._probed: Hashable | None = None
        self._low = False
        self._gone: list[Expected] = []

    async def watch(self) -> None:
        """Look again and again, until it is cancelled."""
        pause = min(LOOK_SECONDS, self._settings.seconds)
        while True:
            await self.look()
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """Ask all questions if it is time to."""
        if not await self._is_time():
            return
        self._due, self._probed = self._clock() + self._settings.seconds, self._seen
        try:
            report, store, label = await self._run()
        except _Overtaken:
            self._due = self._clock()
            return
        except Exception as error:  # whatever it was, the next run may go well
            self._metrics.canary_runs.labels("error").inc()
            log.warning("the canary could not ask its questions: %s", error)
            return
        self._metrics.canary_runs.labels("ok").inc()
        self._metrics.observe_canary(label, report.recall, report.mrr, report.outcomes)
        self._tell(report, store)

    async def _is_time(self) -> bool:
        """Whether a run is due, or the index is another one than at the last run and the same as a look ago."""
        before, self._seen = self._seen, await self._state()
        if self._clock() >= self._due:
            return True
        return self._seen is not None and self._seen == before and self._seen != self._probed

    async def _state(self) -> Hashable | None:
        """What moves with each write to the store, and with each hand-over; None where it cannot be told."""
        with self._handover.lease() as knowledge:
            try:
                store = await store_to_probe(knowledge.catalog, self._settings.store)
            except CatalogError:
                return None  # a run will say why
            return knowledge.version, store.index_name, store.version

    async def _run(self) -> tuple[Report, Store, str]:
        """What was found in which store, and what that is called in metrics.

        Raises GoldenError, CatalogError, RetrievalError.
        """
        questions = await asyncio.to_thread(read_golden, self._settings.file)
        timeout = self._settings.timeout_seconds
        answers = []
        with self._handover.lease() as knowledge:
            store = await store_to_probe(knowledge.catalog, self._settings.store)
            await knowledge.indexes.ready(store, _until(timeout))
            probe = Probe(
                knowledge.uncached,
                knowledge.lexical,
                store.index_name,
                self._settings.min_similarity,
                timeout,
            )
            for question in questions:
                answers.append(await probe.ask(question))
                self._metrics.canary_seconds.observe(answers[-1].seconds)
                await asyncio.sleep(REST * answers[-1].seconds)
                if self._handover.current is not knowledge:
                    raise _Overtaken
            stores = await knowledge.catalog.every_store()
        labels = store_labels(stores, self._settings.readers, OTHER)
        # An id says too little and nothing wrong: it is for a store that was deleted just now.
        return report_of(answers), store, labels.get(store.id, store.id)

    def _tell(self, report: Report, store: Store) -> None:
        """Say in the log what an operator should look at, once for as long as it is so."""
        gone = report.gone
        if gone and gone != self._gone:
            files = list(dict.fromkeys(one.file or "passages of any file" for one in gone))
            named = ", ".join(files[:MOST_NAMED]) + (", …" if files[MOST_NAMED:] else "")
            log.warning(
                "%d of %d canary questions expect what the store %r does not hold any more (%s): ingest it again, or "
                "edit %s",
                len(gone), len(report.answers), store.name, named, self._settings.file,
            )  # fmt: skip
        self._gone = gone
        recall, least = report.recall[WATCHED_RANK], self._settings.min_recall
        low = least is not None and recall < least
        if low != self._low:
            log.log(
                logging.WARNING if low else logging.INFO,
                "canary: recall at %d of the store %r is %.3f, %s canary_min_recall (%s); `groundwire canary check` "
                "names the questions",
                WATCHED_RANK, store.name, recall, "below" if low else "no longer below", least,
            )  # fmt: skip
        self._low = low


class _Overtaken(Exception):
    """A newer version of the index has taken over."""

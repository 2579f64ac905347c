"""All of Groundwire's own metrics: what is counted, and under which labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import islice

from prometheus_client import CollectorRegistry

from retrieval.cache import OUTCOMES, Outcome
from retrieval.ingest.steps import STEPS
from retrieval.trace import StageRecord
from retrieval.types import Candidate
from server.engine.base import EngineTimings
from server.receipts import DROP_REASONS, Receipt
from server.start import StepRecord
from server.telemetry import buckets
from server.telemetry.collectors import Maker
from server.telemetry.index import NO_INDEX, IndexSizes
from server.telemetry.ingests import FILE_OUTCOMES, RUN_OUTCOMES, IngestTotals, StepTotals

#: What became of a candidate.
PACKED = "packed"
#: How a request may end.
ENDINGS = ("ok", "error", "rejected", "cancelled", "dry_run")
#: Why a request is turned away that the server ought to have had room for.
NO_PLACE = ("queue_full", "queue_tokens", "queue_timeout")
#: The label of what a bounded label has no room for.
OTHER = "other"
#: What a step has before the first ingest.
NO_STEPS = StepTotals()
#: An upstream may serve hundreds.
MAX_MODELS = 20


class Metrics:
    """All of Groundwire's own metrics, in the registry that is passed in.

    Never under the prefix `vllm:`: vLLM unregisters those at start. `tenants` have a label of their own in
    `tenant_requests`; where there are none, tenants are not counted. An exemplar is the W3C trace id of one
    request of the bucket; only OpenMetrics shows it.
    """

    def __init__(self, registry: CollectorRegistry, tenants: Collection[str] = ()) -> None:
        self.registry = registry
        self._tenants = frozenset(tenants)
        #: What was last read of the ingests, which are processes of their own; whether one runs now.
        self.ingests, self.ingest_running = IngestTotals(), False
        #: What was last read of the stores.
        self.index: IndexSizes = NO_INDEX
        #: How often the canary asks, and the recall that its operator wants; None: there is none.
        self.canary_period_seconds: float | None = None
        self.canary_min_recall: float | None = None
        make = Maker(registry)
        self._define_requests(make)
        self._define_retrieval(make)
        self._define_index(make)
        self._define_canary(make)
        self._define_process(make)
        #: All of them, in the order of `docs/metrics.md`.
        self.definitions = tuple(make.definitions)
        for outcome in (PACKED, *DROP_REASONS):
            self.passages.labels(outcome)
        # There from the start: a counter that begins at its first count has not increased by it. Of those with many
        # values only what alerts read.
        for outcome in ENDINGS:
            self.requests.labels(outcome)
        for reason in NO_PLACE:
            self.rejected.labels(reason)
        for outcome in ("ok", "error"):
            self.canary_runs.labels(outcome)
        for outcome in ("ok", "failed"):
            self.index_handovers.labels(outcome)
        for status in ("hit", "miss", "off", "degraded"):
            self.retrievals.labels(status)

    def _define_requests(self, make: Maker) -> None:
        self.stage_seconds = make.split_histogram(
            "stage_duration_seconds",
            "Seconds in one stage of one request; each stage has buckets of its own.",
            buckets.STAGE,
            "stage",
            "outcome",
        )
        self.request_seconds = make.histogram(
            "request_duration_seconds",
            "Seconds from the request's first byte in to the answer's last byte out.",
            buckets.REQUEST,
            "route",
            "outcome",
            "grounded",
        )
        self.requests = make.counter(
            "requests_total",
            "Requests by how they ended: `ok`, `error`, `rejected`, `cancelled`, `dry_run`; all are there from the "
            "start, so that a first failure is an increase. The engine's own routes are counted too.",
            "outcome",
        )
        self.ttft_seconds = make.histogram(
            "time_to_first_token_seconds",
            "Seconds from the request's first byte in to the first generated token of a stream, retrieval included.",
            buckets.TTFT,
            "grounded",
        )
        self.abandoned_seconds = make.histogram(
            "abandoned_wait_seconds",
            "Seconds that a stream's client waited for the first token before it left without one.",
            buckets.TTFT,
        )
        self.inter_token_seconds = make.loop_histogram(
            "inter_token_latency_seconds",
            "Seconds from one token of a stream to the next, as the engine hands them out and the client takes them; "
            "not of requests for several choices.",
            buckets.INTER_TOKEN,
            "grounded",
        )
        self.in_flight = make.gauge("requests_in_flight", "Requests being worked on.", "route")
        self.rejected = make.counter(
            "requests_rejected_total",
            "Requests turned away before any work, by why: `auth`, `queue_full`, `queue_tokens`, `queue_timeout`, "
            "`key_limit`, `key_share`, `draining`.",
            "reason",
        )
        self.aborted = make.counter(
            "requests_aborted_total", "Requests whose client went away before the end.", "route"
        )
        self.tenant_requests = make.counter(
            "tenant_requests_total",
            "Requests that were let in, by tenant: of the first `metrics_tenants` of them, and `other` for the rest.",
            "tenant",
        )
        self.queue_length = make.gauge("admission_queue_length", "Requests that wait for a place.")
        self.queue_seconds = make.histogram(
            "admission_queue_duration_seconds",
            "Seconds that a request waited for a place, by what came of it: `ok`, `timeout`, `cancelled`, `drained`.",
            buckets.ADMISSION,
            "outcome",
        )
        self.cut_short = make.counter(
            "streams_cut_short_total",
            "Streams that were ended at `max_stream_seconds`, as at a token limit; their outcome is `ok`.",
            "route",
        )
        self.tokens = make.counter(
            "tokens_total",
            "Tokens by kind: `prompt` (all), `context` (what sources took of it), `cached`, `completion`; of requests "
            "whose numbers the engine told, which it does not of those that were left.",
            "kind",
        )
        self.prompt_tokens = make.histogram(
            "prompt_tokens",
            "Tokens of one request's prompt, sources included.",
            buckets.PROMPT_TOKENS,
        )
        self.completion_tokens = make.histogram(
            "completion_tokens", "Tokens of one request's answer.", buckets.COMPLETION_TOKENS
        )
        self.routed = make.counter(
            "routed_requests_total",
            "Requests for the model `auto` by where they went, `small` or `large`, and why: `simple`; `tools`, "
            "`structured`, `media`, `long_answer`, `many_turns`, `long_prompt`, `long_question`, `code`, `words`; "
            "`requested`; `fallback` (the other one's engine did not answer).",
            "route",
            "reason",
        )

    def _define_retrieval(self, make: Maker) -> None:
        self.retrievals = make.counter(
            "retrievals_total",
            "Requests by what retrieval gave them: `hit`, `miss`, `off`, `degraded`.",
            "status",
        )
        self.context_tokens = make.histogram(
            "context_tokens",
            "Prompt tokens that the sources of one grounded request took; requests without sources are not in it.",
            buckets.CONTEXT_TOKENS,
        )
        self.passages = make.counter(
            "passages_total",
            "Candidates of retrieval by what became of them: `packed` into the prompt, or dropped: "
            f"{', '.join(f'`{reason}`' for reason in DROP_REASONS)}.",
            "outcome",
        )
        self.scores = make.histogram(
            "retrieval_score",
            "Best score of one search: `dense` (cosine), `fused` (0 to 1), `rerank` (where there is a reranker).",
            buckets.SCORE,
            "kind",
        )
        self.cache_requests = make.counter(
            "cache_requests_total",
            "What was asked of the cache `embedding`, `retrieval`, `conversation` (sources of earlier turns) or "
            "`answer`: `hit`, `miss`, `shared` (waited for another request's miss).",
            "cache",
            "result",
        )
        self.cache_evictions = make.counter(
            "cache_evictions_total",
            "Entries that made way for others before their time was over.",
            "cache",
        )
        self.cache_entries = make.gauge("cache_entries", "Entries of a cache.", "cache")
        self.cache_bytes = make.gauge(
            "cache_size_bytes", "Memory that a cache's entries take, about.", "cache"
        )

    def _define_index(self, make: Maker) -> None:
        store = "of the first `metrics_stores` stores by name; `other` is the rest together"
        make.elsewhere(
            "index_passages",
            "gauge",
            f"Passages that searches see, {store}.",
            lambda: {(name,): passages for name, passages in self.index.passages.items()},
            "store",
        )
        make.elsewhere(
            "index_files",
            "gauge",
            f"Files by state (`completed`, `in_progress`, `failed`, `cancelled`), {store}.",
            lambda: self.index.files,
            "store",
            "state",
        )
        make.elsewhere(
            "index_store_version",
            "gauge",
            "Version of a store's index, which moves with each write; of the first `metrics_stores` stores by name.",
            lambda: {(name,): version for name, version in self.index.versions.items()},
            "store",
        )
        self.index_version = make.gauge(
            "index_version",
            "Published version of the index that new requests are answered from; 0: none was published.",
        )
        self.index_handovers = make.counter(
            "index_handovers_total",
            "Newer versions that were taken over (`ok`), and tries that failed (`failed`): the version before goes "
            "on, the log says why.",
            "outcome",
        )
        self._define_ingests(make)
        self.chroma_restarts = make.counter(
            "chroma_restarts_total", "How often the supervised Chroma child was started again."
        )

    def _define_ingests(self, make: Maker) -> None:
        make.elsewhere(
            "ingest_runs_total",
            "counter",
            "Ingests into this data directory by how they ended: `ok`, `partial` (some files could not be read), "
            "`failed`, `cancelled`.",
            lambda: {(name,): self.ingests.runs.get(name, 0) for name in RUN_OUTCOMES},
            "outcome",
        )
        make.elsewhere(
            "ingest_files_total",
            "counter",
            "Files by what became of them: `added`, `replaced`, `unchanged`, `removed`, `failed`.",
            lambda: {(name,): self.ingests.files.get(name, 0) for name in FILE_OUTCOMES},
            "outcome",
        )
        make.elsewhere(
            "ingest_step_duration_seconds",
            "histogram",
            "Seconds in one step of an ingest: `load` and `chunk` (one file), `embed` and `write` to Chroma (up to 32 "
            "chunks), `commit` of the keyword index (some files).",
            lambda: {(step,): self.ingests.steps.get(step, NO_STEPS) for step in STEPS},
            "step",
        )
        make.elsewhere(
            "ingest_last_success_timestamp_seconds",
            "gauge",
            "When an ingest last came to its end (`ok` or `partial`), in Unix seconds; 0: never.",
            lambda: {(): self.ingests.last_success},
        )
        make.elsewhere(
            "ingest_running",
            "gauge",
            "1 while an ingest, a reindex or an adoption works in this data directory.",
            lambda: {(): float(self.ingest_running)},
        )

    def _define_canary(self, make: Maker) -> None:
        self._canary_store = ""
        self.canary_recall = make.gauge(
            "canary_recall",
            "Share of the golden questions whose answer was among the first `k` (1, 4, 10) passages, at the last run.",
            "store",
            "k",
        )
        self.canary_mrr = make.gauge(
            "canary_mrr",
            "Mean of 1 / rank of the first passage that answers a golden question, 0 where none of the first ten does.",
            "store",
        )
        self.canary_questions = make.gauge(
            "canary_questions",
            "Golden questions at the last run: `found` among the first ten, `missed`, `gone` (what they expect is not "
            "in the store).",
            "store",
            "outcome",
        )
        self.canary_last_run = make.gauge(
            "canary_last_run_timestamp_seconds",
            "When the last run that could ask all questions ended, in Unix seconds.",
            "store",
        )
        self.canary_seconds = make.histogram(
            "canary_duration_seconds",
            "Seconds that the search for one golden question took, without caches.",
            buckets.CANARY,
        )
        self.canary_runs = make.counter(
            "canary_runs_total",
            "Runs: `ok`, or `error` (a question could not be asked; the values of the run before stay).",
            "outcome",
        )
        make.elsewhere(
            "canary_period_seconds",
            "gauge",
            "How often the golden questions are asked (`canary_seconds`); not there without a canary.",
            lambda: _where_set(self.canary_period_seconds),
        )
        make.elsewhere(
            "canary_min_recall",
            "gauge",
            "Recall at 4 that the operator wants (`canary_min_recall`); not there where none is set.",
            lambda: _where_set(self.canary_min_recall),
        )

    def _define_process(self, make: Maker) -> None:
        self.start_step_seconds = make.gauge(
            "start_step_duration_seconds",
            "Seconds that a step of this process's start took; some run beside others.",
            "step",
        )
        self.start_step_begin = make.gauge(
            "start_step_begin_seconds",
            "When a step of the start began, in seconds after the process.",
            "step",
        )
        self.start_seconds = make.gauge(
            "start_duration_seconds",
            "Seconds from the process's beginning until all parts could answer.",
        )
        self.build_info = make.gauge(
            "build_info",
            "1: the versions of Groundwire and of its engine's package, the embedder, and Chroma's version "
            "(`external` where it is not ours).",
            "version",
            "engine",
            "engine_version",
            "embedder",
            "chroma",
        )
        self.model_info = make.gauge("model_info", "1 for each model that is served.", "model")

    def observe_canary(
        self, store: str, recall: Mapping[int, float], mrr: float, outcomes: Mapping[str, int]
    ) -> None:
        """What a run of the canary that has just ended found; a store has one label, which may change."""
        if store != self._canary_store:
            self._canary_store = store
            for gauge in (
                self.canary_recall, self.canary_mrr, self.canary_questions, self.canary_last_run
            ):  # fmt: skip
                gauge.clear()
        for k, share in recall.items():
            self.canary_recall.labels(store, str(k)).set(share)
        self.canary_mrr.labels(store).set(mrr)
        for outcome, count in outcomes.items():
            self.canary_questions.labels(store, outcome).set(count)
        self.canary_last_run.labels(store).set_to_current_time()

    def observe_stages(
        self, records: Iterable[StageRecord], exemplar: dict[str, str] | None = None
    ) -> None:
        for record in records:
            self.stage_seconds.labels(record.stage, record.outcome).observe(
                record.duration_seconds, exemplar
            )

    def observe_start(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self.start_step_seconds.labels(record.step).set(record.duration_seconds)
            self.start_step_begin.labels(record.step).set(record.start_seconds)
        self.start_seconds.set(max((record.end_seconds for record in records), default=0.0))

    def observe_tokens(self, timings: EngineTimings | None, context_tokens: int) -> None:
        if context_tokens:
            self.context_tokens.observe(context_tokens)
        if timings is not None:
            self.tokens.labels("prompt").inc(timings.prompt_tokens)
            self.tokens.labels("context").inc(context_tokens)
            self.tokens.labels("cached").inc(timings.cached_tokens)
            self.tokens.labels("completion").inc(timings.completion_tokens)
            self.prompt_tokens.observe(timings.prompt_tokens)
            self.completion_tokens.observe(timings.completion_tokens)

    def observe_search(
        self, best_similarity: float | None, candidates: Sequence[Candidate]
    ) -> None:
        """The best scores of one search, which may have found nothing."""
        if best_similarity is not None:
            self.scores.labels("dense").observe(best_similarity)
        if candidates:
            fused = max(each.scores.get("fuse", each.score) for each in candidates)
            self.scores.labels("fused").observe(fused)
            if "rerank" in candidates[0].scores:
                self.scores.labels("rerank").observe(candidates[0].scores["rerank"])

    def observe_packing(self, receipt: Receipt) -> None:
        """What became of the candidates of a request."""
        if receipt.shown:
            self.passages.labels(PACKED).inc(len(receipt.shown))
        for reason, drops in Counter(drop.reason for drop in receipt.dropped).items():
            self.passages.labels(reason).inc(drops)

    def count_tenant(self, tenant: str) -> None:
        if self._tenants:
            self.tenant_requests.labels(tenant if tenant in self._tenants else OTHER).inc()

    def tell_build(self, build: Build, models: Iterable[str]) -> None:
        self.build_info.labels(*astuple(build)).set(1)
        for model in islice(models, MAX_MODELS):
            self.model_info.labels(model).set(1)


def _where_set(value: float | None) -> dict[tuple[str, ...], float]:
    return {} if value is None else {(): value}


@dataclass(frozen=True, slots=True)
class Build:
    """What runs: the labels of `build_info`."""

    version: str
    engine: str
    engine_version: str
    embedder: str
    chroma: str


class CacheCounts:
    """What one cache does, as metrics; a `CacheObserver`."""

    def __init__(self, metrics: Metrics, cache: str) -> None:
        self._requests = {
            result: metrics.cache_requests.labels(cache, result) for result in OUTCOMES
        }
        self._evictions = metrics.cache_evictions.labels(cache)
        self._entries = metrics.cache_entries.labels(cache)
        self._bytes = metrics.cache_bytes.labels(cache)

    def looked_up(self, outcome: Outcome) -> None:
        self._requests[outcome].inc()

    def evicted(self) -> None:
        self._evictions.inc()

    def resized(self, entries: int, size_bytes: int) -> None:
        self._entries.set(entries)
        self._bytes.set(size_bytes)


def new_registry() -> CollectorRegistry:
    return CollectorRegistry()

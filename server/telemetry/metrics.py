"""Prometheus: what is counted, in which buckets. The one file that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import (
    basic_auth_handler,
    choose_encoder,
    default_handler,
    delete_from_gateway,
    push_to_gateway,
)
from prometheus_client.metrics_core import Metric

from retrieval.cache import OUTCOMES, Outcome
from retrieval.trace import StageRecord
from server.engine.base import EngineTimings
from server.start import StepRecord

#: From half a millisecond (pack, fuse) to two minutes (decode on a CPU): each doubling or so.
STAGE_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
TTFT_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
#: One search, uncached: some milliseconds, and what a slow Chroma makes of them.
CANARY_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: The label `job` of everything that is pushed.
JOB = "groundwire"


class Metrics:
    """All of Groundwire's own metrics, in the registry that is passed in.

    Never under the prefix `vllm:`: vLLM unregisters those at start.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.stage_seconds = Histogram(
            "groundwire_stage_duration_seconds",
            "Time spent in one stage of one request.",
            ("stage", "outcome"),
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "groundwire_request_duration_seconds",
            "From the request's first byte in to the answer's last byte out.",
            ("route", "outcome", "grounded"),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.ttft_seconds = Histogram(
            "groundwire_time_to_first_token_seconds",
            "From the request's first byte in to the first generated token, retrieval included.",
            ("grounded",),
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "groundwire_requests_in_flight",
            "Requests being worked on.",
            ("route",),
            registry=registry,
        )
        self.queue_length = Gauge(
            "groundwire_admission_queue_length",
            "Requests that wait for a place.",
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "groundwire_admission_queue_duration_seconds",
            "Time that a request waited for a place, by what came of it.",
            ("outcome",),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "groundwire_requests_rejected_total",
            "Requests turned away before any work, by reason.",
            ("reason",),
            registry=registry,
        )
        self.aborted = Counter(
            "groundwire_requests_aborted_total",
            "Requests whose client went away before the end.",
            ("route",),
            registry=registry,
        )
        self.cut_short = Counter(
            "groundwire_streams_cut_short_total",
            "Streams that were ended at max_stream_seconds, as at a token limit.",
            ("route",),
            registry=registry,
        )
        self.tokens = Counter(
            "groundwire_tokens_total",
            "Tokens by kind: prompt (all), context (what the sources took of it), cached, completion.",
            ("kind",),
            registry=registry,
        )
        self.retrievals = Counter(
            "groundwire_retrievals_total",
            "Requests by what retrieval gave them.",
            ("status",),
            registry=registry,
        )
        self.routed = Counter(
            "groundwire_routed_requests_total",
            "Requests for the model auto, by the model that they went to and why.",
            ("route", "reason"),
            registry=registry,
        )
        self.chroma_restarts = Counter(
            "groundwire_chroma_restarts_total",
            "How often the supervised Chroma child was started again.",
            registry=registry,
        )
        self.start_step_seconds = Gauge(
            "groundwire_start_step_duration_seconds",
            "How long a step of this process's start took; some run beside others.",
            ("step",),
            registry=registry,
        )
        self.start_step_begin = Gauge(
            "groundwire_start_step_begin_seconds",
            "When a step of the start began, from the start's beginning.",
            ("step",),
            registry=registry,
        )
        self.start_seconds = Gauge(
            "groundwire_start_duration_seconds",
            "From the start's beginning until all parts could answer.",
            registry=registry,
        )
        self.index_version = Gauge(
            "groundwire_index_version",
            "Published version of the index that new requests are answered from; 0: none was published.",
            registry=registry,
        )
        self.index_handovers = Counter(
            "groundwire_index_handovers_total",
            "Newer versions of the index, taken over or failed to be.",
            ("outcome",),
            registry=registry,
        )
        self.cache_requests = Counter(
            "groundwire_cache_requests_total",
            "What was asked of a cache: hit, miss, or shared (waited for a miss of another request).",
            ("cache", "result"),
            registry=registry,
        )
        self.cache_evictions = Counter(
            "groundwire_cache_evictions_total",
            "Entries that made way for others before their time was over.",
            ("cache",),
            registry=registry,
        )
        self.cache_entries = Gauge(
            "groundwire_cache_entries", "Entries of a cache.", ("cache",), registry=registry
        )
        self.cache_bytes = Gauge(
            "groundwire_cache_size_bytes",
            "Memory that a cache's entries take, about.",
            ("cache",),
            registry=registry,
        )

        self.canary_recall = Gauge(
            "groundwire_canary_recall",
            "Share of the golden questions whose answer was among the first k passages, at the last run.",
            ("store", "k"),
            registry=registry,
        )
        self.canary_mrr = Gauge(
            "groundwire_canary_mrr",
            "Mean of 1 / rank of the first passage that answers a golden question, at the last run.",
            ("store",),
            registry=registry,
        )
        self.canary_questions = Gauge(
            "groundwire_canary_questions",
            "Golden questions by what came of them at the last run: found, missed, or gone from the store.",
            ("store", "outcome"),
            registry=registry,
        )
        self.canary_last_run = Gauge(
            "groundwire_canary_last_run_timestamp_seconds",
            "When the last run that could ask all questions ended, in Unix time.",
            ("store",),
            registry=registry,
        )
        self.canary_seconds = Histogram(
            "groundwire_canary_duration_seconds",
            "Time that the search for one golden question took, without caches.",
            buckets=CANARY_BUCKETS,
            registry=registry,
        )
        self.canary_runs = Counter(
            "groundwire_canary_runs_total",
            "Runs through the golden questions; error: one of them could not be asked.",
            ("outcome",),
            registry=registry,
        )

    def observe_canary(
        self, store: str, recall: Mapping[int, float], mrr: float, outcomes: Mapping[str, int]
    ) -> None:
        """What a run that has just ended found."""
        for k, share in recall.items():
            self.canary_recall.labels(store, str(k)).set(share)
        self.canary_mrr.labels(store).set(mrr)
        for outcome, count in outcomes.items():
            self.canary_questions.labels(store, outcome).set(count)
        self.canary_last_run.labels(store).set_to_current_time()

    def observe_stages(self, records: Iterable[StageRecord]) -> None:
        for record in records:
            self.stage_seconds.labels(record.stage, record.outcome).observe(record.duration_seconds)

    def observe_start(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self.start_step_seconds.labels(record.step).set(record.duration_seconds)
            self.start_step_begin.labels(record.step).set(record.start_seconds)
        self.start_seconds.set(max((record.end_seconds for record in records), default=0.0))

    def observe_tokens(self, timings: EngineTimings | None, context_tokens: int) -> None:
        self.tokens.labels("context").inc(context_tokens)
        if timings is not None:
            self.tokens.labels("prompt").inc(timings.prompt_tokens)
            self.tokens.labels("cached").inc(timings.cached_tokens)
            self.tokens.labels("completion").inc(timings.completion_tokens)


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


class _Both:
    """Ours and the process's registry as one, so that one page holds `groundwire_*` and `vllm:*`."""

    def __init__(self, registries: Iterable[CollectorRegistry]) -> None:
        self._registries = tuple(registries)

    def collect(self) -> Iterator[Metric]:
        for registry in self._registries:
            yield from registry.collect()


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics page and its content type, as OpenMetrics where the scraper asks for it.

    vLLM registers its metrics in prometheus_client's default registry, in this process.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Both((registry, PROCESS_REGISTRY))), content_type


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Prometheus Pushgateway, and the group of metrics there that is this process's own.

    `url` holds no password; `user` and `password` are sent as basic auth. Calls block, at most `timeout_seconds`
    in each read and write, and raise OSError.
    """

    url: str
    instance: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_seconds: float = 5.0

    @classmethod
    def parse(cls, url: str, instance: str) -> Gateway:
        """The gateway at an http(s) URL, whose user and password are taken out of it."""
        parts = urlsplit(url)
        user, _, address = parts.netloc.rpartition("@")
        name, _, password = user.partition(":")
        bare = urlunsplit((parts.scheme, address, parts.path, "", "")).rstrip("/")
        if not user:
            return cls(bare, instance)
        return cls(bare, instance, unquote(name), unquote(password))

    def push(self, metrics: Metrics) -> None:
        """Replace the group by what `/metrics` shows now."""
        both: Any = _Both((metrics.registry, PROCESS_REGISTRY))
        push_to_gateway(self.url, JOB, both, **self._how)

    def delete(self) -> None:
        """Take the group away."""
        delete_from_gateway(self.url, JOB, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        handler: Callable[..., Callable[[], None]] = default_handler
        if self.user is not None:
            handler = partial(basic_auth_handler, username=self.user, password=self.password)
        return {
            "grouping_key": {"instance": self.instance},
            "timeout": self.timeout_seconds,
            "handler": handler,
        }

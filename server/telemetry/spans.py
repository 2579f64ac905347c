"""A request's account as spans: one for the request, one for each stage. Pure.

Names and attributes are those of OpenTelemetry's conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/) where they have one, else `groundwire.*`. No text of a prompt,
a passage or an answer is in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from retrieval.trace import StageRecord
from server.engine.base import EngineTimings
from server.plan import Plan
from server.receipts import Receipt
from server.telemetry.traceparent import TraceContext

Attribute = str | bool | int | float | Sequence[str]
PROVIDER = "groundwire"
#: What a span calls the operation of a route.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/vector_stores/{vector_store_id}/search": "retrieval",
}
#: Fields of a request that the conventions have a name for.
ASKED = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
}
#: The conventions' `error.type` for what has no name of its own.
OTHER = "_OTHER"


@dataclass(frozen=True, slots=True)
class Span:
    """One span; seconds are from the request's beginning. `events` are names and when they happened."""

    name: str
    start_seconds: float
    end_seconds: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    failed: bool = False
    events: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known of a request that has ended. `asked` is its body, `error` is what it failed by."""

    route: str
    request_id: str
    completion_id: str
    outcome: str
    seconds: float
    error: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    receipt: Receipt | None = None
    engine: EngineTimings | None = None
    events: Sequence[tuple[str, float]] = ()


class OpenSpan(Protocol):
    """The span of a request that runs."""

    @property
    def context(self) -> TraceContext | None:
        """What the request's own work belongs to; None: to no trace."""

    @property
    def wanted(self) -> bool:
        """Whether it will be sent; otherwise nothing need be told at its end."""

    def end(self, request: Span, stages: Sequence[Span]) -> None:
        """Say what it was, and what was done in it; once."""


class Tracer(Protocol):
    """Begins the spans of requests."""

    def begin(self, client: TraceContext | None) -> OpenSpan:
        """The span of a request that comes in now, below the client's if it names one."""


@dataclass(frozen=True, slots=True)
class Untraced:
    """The span where nothing is sent: the client's own context is handed on as it came."""

    context: TraceContext | None = None
    wanted: bool = False

    def end(self, request: Span, stages: Sequence[Span]) -> None: ...


class NoTracing:
    """The tracer of a server that sends no traces."""

    def begin(self, client: TraceContext | None) -> OpenSpan:
        return Untraced(client)


def request_span(told: Told) -> Span:
    """The span of the whole request, named by operation and model."""
    operation = OPERATIONS.get(told.route, told.route)
    model = told.asked.get("model")
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.system": PROVIDER,  # its name before 2025, which many backends still look for
        "http.route": told.route,
        "groundwire.request_id": told.request_id,
        "groundwire.outcome": told.outcome,
        **_asked(told.asked),
        **_answered(told),
    }
    if told.receipt is not None:
        attributes |= _retrieved(told.receipt)
    failed = told.outcome == "error"
    if failed or told.error is not None:
        attributes["error.type"] = told.error or OTHER
    name = f"{operation} {model}" if isinstance(model, str) else operation
    return Span(name, 0.0, told.seconds, attributes, failed, told.events)


def stage_span(record: StageRecord) -> Span:
    """The span of one run of one stage, by the stage's name."""
    end = record.start_seconds + record.duration_seconds
    failed = record.outcome in ("error", "timeout")
    attributes = {"groundwire.outcome": record.outcome}
    return Span(record.stage, record.start_seconds, end, attributes, failed)


def _asked(body: Mapping[str, Any]) -> dict[str, Attribute]:
    """What the client set. Only numbers: a body that was refused may hold anything."""
    found: dict[str, Attribute] = {}
    if isinstance(model := body.get("model"), str):
        found["gen_ai.request.model"] = model
    for name, attribute in ASKED.items():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
            found[attribute] = value
    return found


def _answered(told: Told) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    if told.plan is not None:
        found["gen_ai.response.id"] = told.completion_id
        found["gen_ai.response.model"] = told.plan.engine_model
        found["gen_ai.request.stream"] = told.plan.stream
    if (engine := told.engine) is not None:
        found["gen_ai.usage.input_tokens"] = engine.prompt_tokens
        found["gen_ai.usage.output_tokens"] = engine.completion_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = engine.cached_tokens
    return found


def _retrieved(receipt: Receipt) -> dict[str, Attribute]:
    """What the receipt says in full, in a few words."""
    found: dict[str, Attribute] = {"groundwire.retrieval.status": receipt.status}
    if receipt.reason is not None:
        found["groundwire.retrieval.reason"] = receipt.reason
    if receipt.stores:
        found["groundwire.retrieval.stores"] = [store.id for store in receipt.stores]
        found["groundwire.retrieval.candidates"] = len(receipt.candidates)
        found["groundwire.retrieval.sources"] = len(receipt.sources)
        found["groundwire.retrieval.context_tokens"] = receipt.context_tokens
    if receipt.best_similarity is not None:
        found["groundwire.retrieval.best_similarity"] = receipt.best_similarity
    if receipt.cached:
        found["groundwire.cached"] = list(receipt.cached)
    if receipt.route is not None:
        found["groundwire.route"] = receipt.route.size
        found["groundwire.route.reason"] = receipt.route.reason
    return found

"""Traces to an OpenTelemetry collector, by OTLP over HTTP. The one file that imports opentelemetry (extra `otel`).

A request's span is begun when it comes, so that its ids can be handed on; everything else is read from the request's
account when it has ended, so that no stage pays for it. The SDK sends from a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
)

from server.telemetry.spans import OpenSpan, Span
from server.telemetry.traceparent import TraceContext


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans go and what they say of their sender.

    `endpoint` is the whole URL. Of the traces that begin here `ratio` are sent, of a client's those that it
    sends itself; None is what OTEL_TRACES_SAMPLER says, else all. The end waits `close_seconds` for the last spans.
    """

    endpoint: str
    resource: Mapping[str, str]
    ratio: float | None = None
    close_seconds: float = 3.0


@asynccontextmanager
async def open_tracing(collector: Collector) -> AsyncIterator[OtelTracer]:
    """Send what is traced while the block runs; leaving it sends the rest, within a few seconds."""
    exporter = OTLPSpanExporter(endpoint=collector.endpoint)
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
    resource = Resource(dict(collector.resource)).merge(OTELResourceDetector().detect())
    sampler = None if collector.ratio is None else ParentBasedTraceIdRatio(collector.ratio)
    provider = TracerProvider(sampler, Resource.get_empty().merge(resource), False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OtelTracer(provider.get_tracer("groundwire"))
    finally:
        await asyncio.to_thread(_close, provider, exporter, collector.close_seconds)


def _close(provider: TracerProvider, exporter: OTLPSpanExporter, seconds: float) -> None:
    shutdown: Callable[[], None] = provider.shutdown
    closing = threading.Thread(target=shutdown, name="traces-close", daemon=True)
    closing.start()
    closing.join(seconds)
    if closing.is_alive():
        stop: Callable[[], None] = exporter.shutdown
        stop()  # ends the wait between two tries


class OtelTracer:
    """A `Tracer` on OpenTelemetry's SDK."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def begin(self, client: TraceContext | None) -> OpenSpan:
        began = time.time_ns()
        parent = Context() if client is None else _parent(client)
        span = self._tracer.start_span("request", parent, SpanKind.SERVER, start_time=began)
        return OtelSpan(self._tracer, span, began)


class OtelSpan:
    """An `OpenSpan`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, began: int) -> None:
        self._tracer = tracer
        self._span = span
        self._began = began
        own = span.get_span_context()
        self.context = TraceContext(
            trace.format_trace_id(own.trace_id),
            trace.format_span_id(own.span_id),
            own.trace_flags.sampled,
            own.trace_state.to_header(),
        )

    @property
    def wanted(self) -> bool:
        return self._span.is_recording()

    def end(self, request: Span, stages: Sequence[Span]) -> None:
        below = trace.set_span_in_context(self._span, Context())
        for stage in stages:
            start = self._at(stage.start_seconds)
            span = self._tracer.start_span(
                stage.name, below, attributes=stage.attributes, start_time=start
            )
            self._end(span, stage)
        self._span.update_name(request.name)
        self._span.set_attributes(request.attributes)
        for name, seconds in request.events:
            self._span.add_event(name, timestamp=self._at(seconds))
        self._end(self._span, request)

    def _end(self, span: trace.Span, told: Span) -> None:
        if told.failed:
            span.set_status(StatusCode.ERROR)
        span.end(self._at(told.end_seconds))

    def _at(self, seconds: float) -> int:
        """Nanoseconds since 1970 of a moment in the request."""
        return self._began + round(seconds * 1e9)


def _parent(client: TraceContext) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if client.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([client.state] if client.state else [])
    ids = int(client.trace_id, 16), int(client.span_id, 16)
    remote = NonRecordingSpan(
        SpanContext(*ids, is_remote=True, trace_flags=flags, trace_state=state)
    )
    return trace.set_span_in_context(remote, Context())

"""An OpenTelemetry collector: takes spans by OTLP over HTTP, and shows what it got."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class Received:
    """One span as it came over the wire; ids in hex, times in seconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    kind: int
    start: float
    end: float
    failed: bool
    attributes: dict[str, Any]
    events: dict[str, float]
    resource: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Collector:
    """What came in, request by request: the spans, and the headers."""

    url: str
    spans: list[Received] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def roots(self, **attributes: Any) -> list[Received]:
        """The spans of requests, those that have these attributes (`_` for `.`)."""
        return [
            span
            for span in self.spans
            if span.kind == Span.SPAN_KIND_SERVER
            and all(span.attributes.get(k.replace("__", ".")) == v for k, v in attributes.items())
        ]

    def below(self, parent: Received) -> dict[str, Received]:
        """The spans right below another one, by their names."""
        return {span.name: span for span in self.spans if span.parent_id == parent.span_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.collector = collector = Collector(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="collector")
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        good = self.path == "/v1/traces"
        if good:
            collector: Collector = self.server.collector  # type: ignore[attr-defined]
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if good else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def _spans(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Received(
                name=span.name,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                state=span.trace_state,
                kind=span.kind,
                start=span.start_time_unix_nano / 1e9,
                end=span.end_time_unix_nano / 1e9,
                failed=span.status.code == Status.STATUS_CODE_ERROR,
                attributes=_attributes(span.attributes),
                events={event.name: event.time_unix_nano / 1e9 for event in span.events},
                resource=resource,
            )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)

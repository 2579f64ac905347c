"""tracing: what shows without a request; `api/test_traces.py` has the spans."""

from __future__ import annotations

import sys

import pytest

from server.services import _open_tracer
from server.settings import Settings, SettingsError
from server.telemetry.spans import NoTracing, Told, request_span
from server.telemetry.traceparent import TraceContext

pytestmark = pytest.mark.anyio


async def test_without_an_address_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.telemetry.tracing", None)
    context = TraceContext("a" * 32, "b" * 16, True)
    async with _open_tracer(Settings()) as tracer:
        assert isinstance(tracer, NoTracing)
        assert tracer.begin(context).context is context
        assert not tracer.begin(context).wanted


async def test_without_the_extra_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "server.telemetry.tracing", None)
    settings = Settings(otlp_endpoint="http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"groundwire\[otel\]"):
        async with _open_tracer(settings):
            pass


def test_a_body_that_was_refused_may_hold_anything() -> None:
    asked = {"model": ["m"], "temperature": "hot", "seed": 2**70, "n": True, "top_p": 0.5}
    span = request_span(Told("/v1/chat/completions", "r", "c", "rejected", 1.0, asked=asked))
    assert span.name == "chat"
    asked_for = {k: v for k, v in span.attributes.items() if k.startswith("gen_ai.request.")}
    assert asked_for == {"gen_ai.request.top_p": 0.5}

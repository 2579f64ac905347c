"""traceparent: W3C's own examples, and what is none."""

from __future__ import annotations

import pytest

from server.telemetry.traceparent import TraceContext, context_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-01",
        f" 00-{TRACE}-{PARENT}-00 ",
        f"cc-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
    ],
)
def test_a_trace(header: str) -> None:
    context = context_of({"traceparent": header})
    assert context is not None
    assert (context.trace_id, context.span_id) == (TRACE, PARENT)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TRACE,
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
    ],
)
def test_none(header: str | None) -> None:
    assert context_of({} if header is None else {"traceparent": header}) is None


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("ff", True)]
)
def test_whether_it_is_sampled(flags: str, sampled: bool) -> None:
    context = context_of({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
    assert context is not None
    assert context.sampled is sampled
    assert context.headers() == {"traceparent": f"00-{TRACE}-{PARENT}-{sampled:02d}"}


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        (f"a={'b' * 510}", True),
        (f"a={'b' * 511}", False),
        ("a=ü", False),
        ("a=\x01", False),
        ("", False),
    ],
)
def test_what_vendors_said_of_it_is_handed_on_where_it_can_be(state: str, kept: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": state}
    context = context_of(headers)
    assert context == TraceContext(TRACE, PARENT, True, state if kept else "")
    assert context.headers() == (headers if kept else {"traceparent": headers["traceparent"]})

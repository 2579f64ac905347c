"""Where a request stands in its client's trace, by W3C Trace Context (https://www.w3.org/TR/trace-context/). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Version, trace id, parent id, flags; a later version may add more behind them.
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 0x01
#: What everyone has to hand on at least (section 3.3.1.5); we take no more.
MAX_STATE_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span in a trace: 32 and 16 hex digits, and what vendors said of it in `tracestate`."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def headers(self) -> dict[str, str]:
        """What makes this span the parent of whatever the receiver does."""
        flags = SAMPLED if self.sampled else 0
        headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        if self.state:
            headers["tracestate"] = self.state
        return headers


def context_of(headers: Mapping[str, str]) -> TraceContext | None:
    """The context that a request's headers (lower case) name; None where there is none or it is not valid."""
    match = TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    of_later = version != "00"
    if version == "ff" or (more is not None and not of_later):
        return None
    if not (int(trace_id, 16) and int(span_id, 16)):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & SAMPLED), _state(headers))


def _state(headers: Mapping[str, str]) -> str:
    """`tracestate` where it can be handed on; without it the trace still holds together."""
    state = headers.get("tracestate", "").strip()
    fits = len(state) <= MAX_STATE_CHARACTERS and state.isascii() and state.isprintable()
    return state if fits else ""

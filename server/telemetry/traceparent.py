"""The trace that a client's request belongs to, by W3C Trace Context (https://www.w3.org/TR/trace-context/). Pure."""

from __future__ import annotations

import re

#: Version, trace id, parent id, flags; a later version may add more behind them.
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id of a `traceparent` header, 32 hex digits; None where there is none or it is not valid."""
    match = TRACEPARENT.fullmatch((traceparent or "").strip())
    if match is None:
        return None
    version, trace_id, parent_id, more = match.groups()
    of_later = version != "00"
    valid = (
        version != "ff" and (of_later or more is None) and int(trace_id, 16) and int(parent_id, 16)
    )
    return trace_id if valid else None

"""When retrieval must be over: whoever begins it says so once, and every step of it ends then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from retrieval.errors import DeadlineExceeded

LATE = "retrieval took longer than it may (retrieval_timeout_seconds)"


@asynccontextmanager
async def deadline(until: float | None, late: str = LATE) -> AsyncIterator[asyncio.Timeout]:
    """Ends the block at `until`, in the event loop's time (None: never), with DeadlineExceeded of these words."""
    try:
        async with asyncio.timeout_at(until) as limit:
            yield limit
    except TimeoutError:
        raise DeadlineExceeded(late) from None

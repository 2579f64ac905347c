"""Work that goes on beside a block, and has ended when the block is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `works` while the block runs; then cancel them, and wait until they have gone.

    Not only cancel: what they use (a database, say) is closed next, and a task that is in the middle of a query
    waits for ever for an answer of something closed.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

"""One reading for all who wait for the same thing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedReads(Generic[K, V]):
    """Readings that begin only after the last of their callers came, so that none sees an older state.

    Who comes while one is under way waits for the next one, together with all others who do. A caller that
    leaves does not end it. Used from one event loop.
    """

    def __init__(self, read: Callable[[K], Awaitable[V]]) -> None:
        self._read = read
        self._running: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """What the reading finds. Raises what it raises."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.ensure_future(self._after(key))
        return await asyncio.shield(task)

    async def _after(self, key: K) -> V:
        """The reading, once the one before it has ended."""
        while (before := self._running.get(key)) is not None:
            await asyncio.wait([before])
        task = self._running[key] = self._next.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._running[key] is task:
                del self._running[key]

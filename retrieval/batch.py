"""Work that arrives while other work is under way is done together, next; a lone item never waits for company."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from retrieval.errors import own_copy

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Callable[[list[Item]], Awaitable[Sequence[Result]]]


class Batcher(Generic[Item, Result]):
    """Does one batch at a time, each of all that is queued, at most `most`; used from one event loop.

    `work` gives a result for each item, in their order. What it raises goes to every waiter of that batch,
    a copy to each; who is cancelled while queued is left out. `on_idle` is called when nothing is left to do.
    """

    def __init__(
        self,
        work: Work[Item, Result],
        most: int,
        *,
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        self._work = work
        self._most = most
        self._on_idle = on_idle
        self._queued: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def do(self, item: Item) -> Result:
        """The item's result. Raises what `work` raises."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Result] = loop.create_future()
        self._queued.append((item, waiter))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._run())
        return await waiter

    async def close(self, reason: Exception) -> None:
        """Fail what is queued with copies of `reason`, and return when the batch under way has ended."""
        for _, waiter in self._queued:
            if not waiter.done():
                waiter.set_exception(own_copy(reason))
        self._queued.clear()
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def _run(self) -> None:
        while batch := self._take():
            try:
                results = await self._work([item for item, _ in batch])
                for (_, waiter), result in zip(batch, results, strict=True):
                    if not waiter.done():
                        waiter.set_result(result)
            except Exception as error:  # whatever it was, it belongs to these waiters alone
                for _, waiter in batch:
                    if not waiter.done():
                        waiter.set_exception(own_copy(error))
        self._on_idle()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """What is queued now and still wanted, at most one batch."""
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._queued and len(batch) < self._most:
            queued = self._queued.popleft()
            if not queued[1].done():
                batch.append(queued)
        return batch

"""Work that arrives while other work is under way is done together, next; a lone item never waits for company."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar

from retrieval.errors import own_copy

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Callable[[list[Item]], Awaitable[Sequence[Result]]]


class Batcher(Generic[Item, Result]):
    """Does batches of all that is queued, at most `most`, one at a time; used from one event loop.

    `work` gives a result for each item, in their order. What it raises goes to every waiter of that batch,
    a copy to each. Who is cancelled while queued is left out, and a batch that nobody waits for any longer is
    cancelled. `on_idle` is called when nothing is left to do. With `patience_seconds` a batch that takes
    longer no longer holds up what is queued: the next one is begun beside it, up to `at_once` of them.
    """

    def __init__(
        self,
        work: Work[Item, Result],
        most: int,
        *,
        on_idle: Callable[[], object] = lambda: None,
        patience_seconds: float | None = None,
        at_once: int = 4,
    ) -> None:
        self._work = work
        self._most = most
        self._on_idle = on_idle
        self._patience_seconds = patience_seconds
        self._at_once = at_once
        self._queued: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._hurry: asyncio.TimerHandle | None = None

    async def do(self, item: Item) -> Result:
        """The item's result. Raises what `work` raises."""
        waiter: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queued.append((item, waiter))
        if not self._workers:
            self._begin()
        else:
            self._wait_patiently()
        return await waiter

    async def close(self, reason: Exception) -> None:
        """Fail what is queued with copies of `reason`, and return when what is under way has ended."""
        for _, waiter in self._queued:
            if not waiter.done():
                waiter.set_exception(own_copy(reason))
        self._queued.clear()
        if self._workers:
            await asyncio.wait(self._workers)

    def _begin(self) -> None:
        # In no request's context: it goes on for others, and what it logs is not of the one that began it.
        loop = asyncio.get_running_loop()
        self._workers.add(loop.create_task(self._run(), context=Context()))

    def _wait_patiently(self) -> None:
        """See to it that what is queued now is begun before long."""
        if self._patience_seconds is None or self._hurry or len(self._workers) == self._at_once:
            return
        loop = asyncio.get_running_loop()
        self._hurry = loop.call_later(self._patience_seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        self._hurry = None
        if self._queued and len(self._workers) < self._at_once:
            self._begin()

    async def _run(self) -> None:
        while batch := self._take():
            await self._do(batch)
        worker = asyncio.current_task()
        assert worker is not None
        self._workers.discard(worker)
        if not self._workers:
            if self._hurry is not None:
                self._hurry.cancel()
                self._hurry = None
            self._on_idle()

    async def _do(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        waiters = [waiter for _, waiter in batch]
        items = [item for item, _ in batch]
        work: asyncio.Future[Sequence[Result]]
        work = asyncio.ensure_future(self._work(items))
        for waiter in waiters:
            waiter.add_done_callback(partial(_end_if_all_left, work, waiters))
        await asyncio.wait([work])
        if work.cancelled():
            return
        try:
            for waiter, result in zip(waiters, work.result(), strict=True):
                if not waiter.done():
                    waiter.set_result(result)
        except Exception as error:  # whatever it was, it belongs to these waiters alone
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(own_copy(error))

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """What is queued now and still wanted, at most one batch."""
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._queued and len(batch) < self._most:
            queued = self._queued.popleft()
            if not queued[1].done():
                batch.append(queued)
        return batch


def _end_if_all_left(
    work: asyncio.Future[Any], waiters: Sequence[asyncio.Future[Any]], _: object
) -> None:
    if all(waiter.done() for waiter in waiters):
        work.cancel()

"""A cache with bounds on entries, bytes and time, in which each value is computed once at a time."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from retrieval.errors import own_copy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: `shared` waited for a load that another caller had begun.
Outcome = Literal["hit", "miss", "shared"]
OUTCOMES: tuple[Outcome, ...] = ("hit", "miss", "shared")


class CacheObserver(Protocol):
    """Who counts what a cache does."""

    def looked_up(self, outcome: Outcome) -> None: ...

    def evicted(self) -> None:
        """An entry made way for others; running out of its time is no eviction."""

    def resized(self, entries: int, size_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a cache keeps, and how long after it was loaded. No entries, or no bytes: it is off."""

    max_entries: int
    max_bytes: int
    ttl_seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Found(Generic[V]):
    """A value, and how it was come by."""

    value: V
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    size_bytes: int
    expires_seconds: float


@dataclass(slots=True)
class _Flight(Generic[V]):
    """A load in progress and how many wait for it."""

    task: asyncio.Task[V]
    waiters: int = 0


class Cache(Generic[K, V]):
    """Least recently used goes first; one load a key at a time; used from one event loop.

    A value that is larger than the whole cache, or that `keeps` says no to, is returned and not kept.
    """

    def __init__(
        self,
        bounds: Bounds,
        size_bytes: Callable[[K, V], int],
        *,
        keeps: Callable[[V], bool] = lambda _: True,
        observer: CacheObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds = bounds
        self._size_bytes = size_bytes
        self._keeps = keeps
        self._observer = observer
        self._clock = clock
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._flights: dict[K, _Flight[V]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def on(self) -> bool:
        return self._bounds.max_entries > 0 and self._bounds.max_bytes > 0

    def peek(self, key: K) -> V | None:
        """The value of `key` if it is there, counted as a hit; whoever then loads it counts the miss."""
        entry = self._fresh(key)
        if entry is None:
            return None
        self._looked_up("hit")
        return entry.value

    def find(self, keys: Iterable[K]) -> V | None:
        """The value of the first of these keys that is there; one look-up, a hit or a miss."""
        entry = next((entry for key in keys if (entry := self._fresh(key)) is not None), None)
        self._looked_up("miss" if entry is None else "hit")
        return None if entry is None else entry.value

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> Found[V]:
        """The value of `key`, loaded if it is not there.

        A caller that is cancelled leaves the load to the others who wait; the last one ends it. Raises what
        `load` raises, an exception of its own for each caller; nothing is kept then.
        """
        if not self.on:
            return Found(await load(), "miss")
        entry = self._fresh(key)
        if entry is not None:
            self._looked_up("hit")
            return Found(entry.value, "hit")
        flight = self._flights.get(key)
        outcome: Outcome = "miss" if flight is None else "shared"
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._load(key, load)))
            flight.task.add_done_callback(_hear_of_failure)
        self._looked_up(outcome)
        return Found(await self._wait(key, flight), outcome)

    async def _wait(self, key: K, flight: _Flight[V]) -> V:
        flight.waiters += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                if self._flights.get(key) is flight:  # who comes now begins anew
                    del self._flights[key]
                flight.task.cancel()
                await asyncio.wait([flight.task])
        error = flight.task.exception()
        if error is not None:
            raise own_copy(error)
        return flight.task.result()

    async def _load(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await load()
            self.keep(key, value)
            return value
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is asyncio.current_task():
                del self._flights[key]

    def _fresh(self, key: K) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_seconds <= self._clock():
            self._forget(key)
            self._resized()
            return None
        self._entries.move_to_end(key)
        return entry

    def keep(self, key: K, value: V) -> None:
        """Keep a value, if the bounds let it in; the least recently used make way."""
        bounds, size = self._bounds, self._size_bytes(key, value)
        if size > bounds.max_bytes or not self._keeps(value):
            return
        if key in self._entries:
            self._forget(key)
        self._entries[key] = _Entry(value, size, self._clock() + bounds.ttl_seconds)
        self._bytes += size
        while len(self._entries) > bounds.max_entries or self._bytes > bounds.max_bytes:
            self._forget(next(iter(self._entries)))
            if self._observer is not None:
                self._observer.evicted()
        self._resized()

    def _forget(self, key: K) -> None:
        self._bytes -= self._entries.pop(key).size_bytes

    def _looked_up(self, outcome: Outcome) -> None:
        if self._observer is not None:
            self._observer.looked_up(outcome)

    def _resized(self) -> None:
        if self._observer is not None:
            self._observer.resized(len(self._entries), self._bytes)


def _hear_of_failure(task: asyncio.Task[V]) -> None:
    """Where nobody is left to wait, asyncio would log a failure as forgotten."""
    if not task.cancelled():
        task.exception()

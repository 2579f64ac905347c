"""Blocking work in a thread of its own, which can be given up before it has ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Called by the work between its parts: raises GivenUp once nobody waits for it any more.
Check = Callable[[], None]

#: How often the work's surroundings are looked at.
LOOK_SECONDS = 0.05
#: How long work that was given up may take to notice. It then goes on in a thread that ends with the process.
GIVE_UP_SECONDS = 20.0


class GivenUp(Exception):
    """Nobody waits for this work any more. Raised in its own thread alone."""


class Background(Generic[T]):
    """Work that has begun. Made by `in_background`."""

    def __init__(self, work: Callable[[Check], T]) -> None:
        self._work = work
        self._outcome: Future[T] = Future()
        self._outcome.set_running_or_notify_cancel()  # whoever waits can leave, not end it
        self._given_up = threading.Event()
        self._taken = False
        # Not one of the loop's threads: those are waited for, however long they take, when the loop ends.
        threading.Thread(target=self._run, name="background", daemon=True).start()

    async def reaches(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds or the work is done. Raises what the work raised by then."""
        while not (self._outcome.done() or condition()):  # noqa: ASYNC110 - it is nobody's event
            await asyncio.sleep(LOOK_SECONDS)
        if self._outcome.done():
            self._outcome.result()

    async def result(self) -> T:
        """What the work made, the caller's from now on. Raises what it raised."""
        made = await asyncio.wrap_future(self._outcome)
        self._taken = True
        return made

    async def give_up(self, stop: Callable[[], None], discard: Callable[[T], None]) -> None:
        """End the work, or discard what it made, unless someone took it.

        `stop` ends what the work waits for; it is called until the work has ended.
        """
        if self._taken:
            return
        self._given_up.set()
        with anyio.move_on_after(GIVE_UP_SECONDS):
            while not self._outcome.done():
                stop()
                await asyncio.sleep(LOOK_SECONDS)
        if not self._outcome.done():
            log.warning("work in the background did not end in %g s; it is left", GIVE_UP_SECONDS)
        elif self._outcome.exception() is None:
            discard(self._outcome.result())

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._work(self._check))
        except BaseException as error:  # SystemExit too: a parser's, meant for who waits
            self._outcome.set_exception(error)

    def _check(self) -> None:
        if self._given_up.is_set():
            raise GivenUp


@asynccontextmanager
async def in_background(
    work: Callable[[Check], T], *, stop: Callable[[], None], discard: Callable[[T], None]
) -> AsyncIterator[Background[T]]:
    """Begin the work in a thread; at the end of the block it is given up, unless its result was taken."""
    background = Background(work)
    try:
        yield background
    finally:
        with anyio.CancelScope(shield=True):
            await background.give_up(stop, discard)

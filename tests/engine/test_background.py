"""background: blocking work is waited for, given up, or its result discarded, and never lost."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import pytest

from server.engine.background import Background, Check, GivenUp, in_background


@dataclass
class Work:
    """Work that waits until it is released, and notes how it ended."""

    released: threading.Event = field(default_factory=threading.Event)
    discarded: list[str] = field(default_factory=list)
    ended: list[type[BaseException]] = field(default_factory=list)

    def __call__(self, check: Check) -> str:
        self.released.wait(60)
        try:
            check()
        except GivenUp:
            self.ended.append(GivenUp)
            raise
        return "made"

    def begun(self) -> AbstractAsyncContextManager[Background[str]]:
        return in_background(self, stop=self.released.set, discard=self.discarded.append)


async def done(background: Background[str]) -> None:
    await background.reaches(lambda: False)


def test_what_it_made_belongs_to_who_waited() -> None:
    work = Work()

    async def run() -> str:
        async with work.begun() as background:
            work.released.set()
            return await background.result()

    assert asyncio.run(run()) == "made"
    assert work.discarded == []


def test_work_that_nobody_waits_for_is_given_up() -> None:
    work = Work()

    async def run() -> None:
        async with work.begun():
            raise ValueError("another part failed")

    with pytest.raises(ValueError, match="another part"):
        asyncio.run(run())
    assert work.ended == [GivenUp]
    assert work.discarded == []


def test_who_is_cancelled_while_it_waits_gives_it_up() -> None:
    work = Work()

    async def run() -> None:
        async with work.begun() as background:
            await background.result()

    async def main() -> None:
        waiting = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert work.ended == [GivenUp]


def test_what_was_made_and_not_taken_is_discarded() -> None:
    work = Work()

    async def run() -> None:
        async with work.begun() as background:
            work.released.set()
            await done(background)

    asyncio.run(run())
    assert work.discarded == ["made"]


@pytest.mark.parametrize("error", [OSError("no such model"), SystemExit(2)])
def test_its_error_is_raised_where_it_is_waited_for(error: BaseException) -> None:
    def work(_: Check) -> str:
        raise error

    async def run(early: bool) -> None:
        async with in_background(work, stop=lambda: None, discard=print) as background:
            if early:
                await done(background)
            await background.result()

    async def main() -> None:
        for early in (True, False):
            with pytest.raises(type(error)):
                await run(early)

    asyncio.run(main())


def test_a_condition_is_waited_for_while_it_works() -> None:
    work = Work()
    reached: list[bool] = []

    async def run() -> None:
        async with work.begun() as background:
            await background.reaches(lambda: True)
            reached.append(work.released.is_set())

    asyncio.run(run())
    assert reached == [False]

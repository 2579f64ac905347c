"""Who is answered from which version, and when a version is closed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from server.handover import Handover

pytestmark = pytest.mark.anyio


class Versions:
    """Stand where knowledge stands, and note what was closed."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def make(self, version: int) -> tuple[Any, AsyncExitStack]:
        closing = AsyncExitStack()
        closing.callback(self.closed.append, version)
        return SimpleNamespace(version=version), closing


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        await checkpoint()
    raise AssertionError("it did not come to that")


async def test_a_request_keeps_its_version_and_the_next_one_gets_the_new_one() -> None:
    versions = Versions()
    handover = Handover(*versions.make(1))
    with handover.lease() as first, handover.lease():
        handover.to(*versions.make(2))
        assert first.version == 1
        with handover.lease() as second:
            assert second.version == 2
        await checkpoint()
        assert versions.closed == []
        assert handover.leaving == 1
    await settled(lambda: versions.closed == [1])
    await settled(lambda: handover.leaving == 0)
    await handover.close()
    assert versions.closed == [1, 2]


async def test_a_version_that_nobody_uses_is_closed_at_once() -> None:
    versions = Versions()
    handover = Handover(*versions.make(1))
    handover.to(*versions.make(2))
    await settled(lambda: versions.closed == [1])
    await handover.close()


async def test_a_failing_request_gives_its_version_back() -> None:
    versions = Versions()
    handover = Handover(*versions.make(1))
    with pytest.raises(KeyError), handover.lease():
        raise KeyError
    handover.to(*versions.make(2))
    await settled(lambda: versions.closed == [1])
    await handover.close()


async def test_the_end_waits_for_nobody() -> None:
    versions = Versions()
    handover = Handover(*versions.make(1))
    with handover.lease():
        handover.to(*versions.make(2))
        await handover.close()
    assert versions.closed == [1, 2]


async def test_the_end_in_the_turn_in_which_a_request_ends() -> None:
    versions = Versions()
    handover = Handover(*versions.make(1))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            with handover.lease(), handover.lease():
                handover.to(*versions.make(2))
                await checkpoint()  # the old version's end is being waited for
                group.start_soon(handover.close)
                await checkpoint()  # close() has begun, and the wait has not gone on yet
    assert versions.closed == [1, 2]


async def test_a_version_that_closes_badly_is_closed_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    versions = Versions()
    knowledge, closing = versions.make(1)

    def fail() -> None:
        raise OSError("no space left")

    closing.callback(fail)
    handover = Handover(knowledge, closing)
    handover.to(*versions.make(2))
    await settled(lambda: handover.leaving == 0)
    assert versions.closed == [1]
    assert "version 1 of the index did not close well" in caplog.text
    await handover.close()

"""Who waits for the same thing shares one reading, and never sees a state from before it asked."""

from __future__ import annotations

import asyncio

import pytest

from server.catalog.reads import SharedReads


class Slow:
    """Reads a value when it is told to go on."""

    def __init__(self) -> None:
        self.value = "old"
        self.begun = 0
        self.go_on = asyncio.Event()

    async def read(self, key: str) -> str:
        self.begun += 1
        seen = self.value
        await self.go_on.wait()
        if seen == "broken":
            raise ValueError(key)
        return f"{key}:{seen}"


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_those_who_come_during_a_reading_share_the_next() -> None:
    slow = Slow()
    reads = SharedReads(slow.read)
    first = asyncio.ensure_future(reads.get("k"))
    await turns()
    slow.value = "new"
    later = [asyncio.ensure_future(reads.get("k")) for _ in range(5)]
    other = asyncio.ensure_future(reads.get("other"))
    await turns()
    assert slow.begun == 2, "another key does not wait"
    slow.go_on.set()
    assert await first == "k:old"
    assert [await one for one in later] == ["k:new"] * 5
    assert await other == "other:new"
    assert slow.begun == 3


@pytest.mark.anyio
async def test_who_leaves_takes_nobody_along() -> None:
    slow = Slow()
    reads = SharedReads(slow.read)
    leaving, staying = (asyncio.ensure_future(reads.get("k")) for _ in range(2))
    await turns()
    leaving.cancel()
    slow.go_on.set()
    assert await staying == "k:old"
    assert leaving.cancelled()


@pytest.mark.anyio
async def test_a_failure_is_told_to_all_and_then_forgotten() -> None:
    slow = Slow()
    slow.value = "broken"
    slow.go_on.set()
    reads = SharedReads(slow.read)
    results = await asyncio.gather(*(reads.get("k") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in results] == [ValueError] * 3
    slow.value = "mended"
    assert await reads.get("k") == "k:mended"

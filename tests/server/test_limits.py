"""limits: places are given back whatever happens; the queue is bounded, in order, and fair between keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from server.auth import Caller
from server.errors import Draining, Overloaded, RateLimited
from server.limits import Admission, Limits, Place, estimated_tokens
from server.telemetry.metrics import Metrics, new_registry

pytestmark = pytest.mark.anyio

ANA, BOB = Caller("acme", key="0"), Caller("globex", key="1")


class Desk:
    """An Admission, and what its metrics say."""

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics(new_registry())
        self.admission = Admission(self.metrics, Limits(**{"max_running": 1, **limits}))

    def enter(self, caller: Caller = ANA, tokens: int | None = 0) -> Place:
        return self.admission.enter("/r", caller, tokens)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"groundwire_{name}", labels) or 0.0

    def rejected(self, reason: str) -> float:
        return self.value("requests_rejected_total", reason=reason)

    @property
    def running(self) -> float:
        return self.value("requests_in_flight", route="/r")

    @property
    def waiting(self) -> float:
        return self.value("admission_queue_length")


async def test_a_place_is_given_back_whatever_happens() -> None:
    desk = Desk()
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"^1$"):
            async with desk.admission.admit("/r", ANA):
                raise RuntimeError(str(int(desk.running)))
    assert desk.running == 0


async def test_leaving_twice_frees_one_place() -> None:
    desk = Desk(max_running=2)
    first, _ = desk.enter(), desk.enter()
    first.leave()
    first.leave()
    assert desk.running == 1
    desk.enter()
    with pytest.raises(Overloaded):
        desk.enter()


async def test_without_a_queue_what_is_over_is_refused() -> None:
    desk = Desk()
    desk.enter()
    with pytest.raises(Overloaded, match="max_running"):
        desk.enter()
    assert desk.rejected("queue_full") == 1


async def test_the_queue_is_bounded_and_in_order() -> None:
    desk = Desk(max_queued=2)
    running, second, third = (desk.enter() for _ in range(3))
    assert (running.state, second.state, third.state) == ("running", "waiting", "waiting")
    with pytest.raises(Overloaded, match="max_queued"):
        desk.enter()
    assert (desk.running, desk.waiting) == (1, 2)
    running.leave()
    await asyncio.wait_for(second.turn(), 5)
    assert (second.state, third.state) == ("running", "waiting")
    second.leave()
    third.leave()
    assert (desk.running, desk.waiting) == (0, 0)
    assert desk.value("admission_queue_duration_seconds_count", outcome="ok") == 2


async def test_nobody_overtakes_the_queue() -> None:
    desk = Desk(max_queued=2)
    running, waiting = desk.enter(), desk.enter()
    running.leave()
    late = desk.enter()
    assert (waiting.state, late.state) == ("running", "waiting")


async def test_who_leaves_while_waiting_is_never_called() -> None:
    desk = Desk(max_queued=2)
    running, gone, next_one = (desk.enter() for _ in range(3))
    gone.leave()
    assert desk.waiting == 1
    running.leave()
    assert next_one.state == "running"
    assert desk.value("admission_queue_duration_seconds_count", outcome="cancelled") == 1


async def test_who_is_called_and_cancelled_at_once_passes_the_place_on() -> None:
    desk = Desk(max_queued=2)
    running = desk.enter()
    turned = asyncio.ensure_future(hold(desk))
    await until(lambda: desk.waiting == 1)
    last = desk.enter()
    running.leave()
    turned.cancel()
    with suppress(asyncio.CancelledError):
        await turned
    assert last.state == "running"
    last.leave()
    assert (desk.running, desk.waiting) == (0, 0)


async def hold(desk: Desk) -> None:
    async with desk.admission.admit("/r", ANA):
        await asyncio.Event().wait()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError


async def test_a_wait_ends() -> None:
    desk = Desk(max_queued=1, queue_timeout_seconds=0.001)
    desk.enter()
    with pytest.raises(Overloaded, match="queue_timeout_seconds"):
        async with desk.admission.admit("/r", ANA):
            pass
    assert desk.waiting == 0
    assert desk.rejected("queue_timeout") == 1
    assert desk.value("admission_queue_duration_seconds_count", outcome="timeout") == 1


@pytest.mark.parametrize(("tokens", "let_in"), [(60, True), (61, False), (None, False)])
async def test_waiting_tokens_are_bounded(tokens: int | None, let_in: bool) -> None:
    desk = Desk(max_queued=9, max_queued_tokens=100)
    desk.enter(tokens=1000)  # running ones do not count
    desk.enter(tokens=40)
    if let_in:
        assert desk.enter(tokens=tokens).state == "waiting"
        return
    with pytest.raises(Overloaded, match="max_queued_tokens"):
        desk.enter(tokens=tokens)
    assert desk.rejected("queue_tokens") == 1


async def test_an_empty_queue_takes_a_prompt_of_any_size() -> None:
    desk = Desk(max_queued=9, max_queued_tokens=100)
    desk.enter()
    assert desk.enter(tokens=101).state == "waiting"


async def test_keys_take_turns() -> None:
    desk = Desk(max_queued=8)
    running = desk.enter()
    greedy = [desk.enter(ANA) for _ in range(3)]
    modest = desk.enter(BOB)
    running.leave()
    assert greedy[0].state == "running"
    greedy[0].leave()
    assert (modest.state, greedy[1].state) == ("running", "waiting")
    modest.leave()
    assert greedy[1].state == "running"


async def test_no_key_fills_the_queue() -> None:
    desk = Desk(max_queued=8, fair=True)
    desk.enter()
    for _ in range(4):
        desk.enter(ANA)
    with pytest.raises(RateLimited, match="other keys"):
        desk.enter(ANA)
    assert desk.rejected("key_share") == 1
    assert desk.enter(BOB).state == "waiting"


async def test_a_key_s_own_limit_counts_what_runs_and_what_waits() -> None:
    desk = Desk(max_queued=8, max_concurrent_per_key=2)
    running, waiting = desk.enter(ANA), desk.enter(ANA)
    with pytest.raises(RateLimited, match="max_concurrent_per_key"):
        desk.enter(ANA)
    assert desk.rejected("key_limit") == 1
    desk.enter(BOB)
    waiting.leave()
    desk.enter(ANA)
    running.leave()


async def test_draining_sends_the_waiting_away_and_lets_the_running_finish() -> None:
    desk = Desk(max_queued=2)
    running, waiting = desk.enter(), desk.enter()
    desk.admission.drain()
    assert desk.admission.draining
    with pytest.raises(Draining):
        await waiting.turn()
    with pytest.raises(Draining):
        desk.enter()
    assert (desk.running, desk.waiting) == (1, 0)
    running.leave()
    waiting.leave()
    assert desk.running == 0
    assert desk.rejected("draining") == 2


async def test_retry_after_grows_with_the_queue_and_the_service_time() -> None:
    desk = Desk(max_queued=3)
    desk.admission._learn(4.0)
    desk.enter()
    for _ in range(3):
        desk.enter()
    with pytest.raises(Overloaded) as refusal:
        desk.enter()
    assert refusal.value.retry_after_seconds == 16
    desk.admission._learn(10_000.0)
    assert desk.admission.retry_after_seconds == 60
    assert Desk().admission.retry_after_seconds == 1


@pytest.mark.parametrize(
    ("declared", "tokens"),
    [
        ("400", 100),
        ("0", 0),
        (None, None),
        ("-1", None),
        ("٣", None),
        ("9" * 5000, int("9" * 20) // 4),
    ],
)
def test_tokens_are_estimated_from_the_declared_length(
    declared: str | None, tokens: int | None
) -> None:
    assert estimated_tokens(declared) == tokens

"""Seconds of a step and of a prompt, by hand; and that they move the right way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.capacity.architecture import CapacityError
from server.capacity.flags import EngineLimits
from server.capacity.hardware import gpu
from server.capacity.load import Engine, Workload, alone, highest_qps, under_load
from server.capacity.roofline import decode_step_seconds, prefill_seconds
from server.profiles import load_profile
from tests.server.capacity.shapes import ROUND, SMALL

LIMITS = EngineLimits(max_model_len=128, max_batched_tokens=64)
WORK = Workload(prompt_tokens=1500, output_tokens=200)


def a10g(name: str, places: int = 64) -> Engine:
    profile = load_profile(name)
    limits = EngineLimits(max_model_len=4096, max_num_seqs=places)
    return Engine(profile.architecture, limits, gpu("A10G"), places)


def test_a_step_that_waits_for_memory() -> None:
    read = SMALL.bytes_read_a_step(2) + 3 * 10 * SMALL.kv_bytes_per_token(2)
    assert decode_step_seconds(SMALL, LIMITS, ROUND, 3, 10) == pytest.approx(read / 5e5 + 0.25)


def test_a_step_that_waits_for_arithmetic() -> None:
    slow = replace(ROUND, flops=1e3)
    operations = 3 * (2 * 4_608 + 2 * 160 + 4 * 2 * 2 * 8 * 10)
    assert decode_step_seconds(SMALL, LIMITS, slow, 3, 10) == pytest.approx(operations / 500 + 0.25)


def test_a_prompt_in_two_steps() -> None:
    operations = 100 * 2 * 4_608 + 2 * 160 + 2 * 2 * 2 * 8 * 100 * 100
    slow = replace(ROUND, flops=1e6)
    assert prefill_seconds(SMALL, LIMITS, slow, 100) == pytest.approx(operations / 5e5 + 0.5)


def test_the_figures_that_the_shares_were_taken_from() -> None:
    """A 7B model's prompt of 1,024 tokens on an A100: 71.6 ms in float16, 78.4 ms in 4 bits."""
    llama = replace(
        load_profile("mistral-7b").architecture,
        kv_heads=32,
        intermediate_size=11008,
        vocabulary=32000,
    )
    seconds = prefill_seconds(llama, EngineLimits(4096), gpu("A100-80GB"), 1024)
    assert 0.0716 < seconds < 0.0784 * 1.1


def test_quantised_weights_are_quicker_to_decode() -> None:
    quick, slow = (a10g(name).step_seconds(1, WORK) for name in ("qwen3-4b", "qwen3-4b-bf16"))
    assert quick < slow / 2


@given(st.integers(1, 60), st.integers(1, 60))
def test_more_at_once_is_never_quicker(few: int, more: int) -> None:
    engine = a10g("qwen3-4b")
    few, more = min(few, more), max(few, more)
    assert engine.step_seconds(few, WORK) <= engine.step_seconds(more, WORK)


def test_load_makes_everyone_wait_and_then_too_many_come() -> None:
    engine = a10g("mistral-7b")
    quiet, most = alone(engine, WORK), highest_qps(engine, WORK)
    idle = under_load(engine, WORK, 1e-6)
    assert idle is not None
    assert idle.ttft_seconds == pytest.approx(quiet.ttft_seconds, rel=1e-3)
    assert idle.token_seconds == pytest.approx(quiet.token_seconds, rel=1e-3)
    busy = under_load(engine, WORK, most * 0.9)
    assert busy is not None
    assert busy.token_seconds > quiet.token_seconds
    assert busy.ttft_seconds > quiet.ttft_seconds
    # Prompts have their share of the time, and tokens wait for them.
    left = 1 - most * 0.9 * engine.prefill_seconds(1500)
    step = engine.step_seconds(busy.requests, WORK)
    assert busy.token_seconds == pytest.approx(step / left, rel=1e-3)
    # Little's law: as many are decoded at once as come while one is.
    assert busy.requests == pytest.approx(most * 0.9 * 199 * busy.token_seconds, rel=1e-3)
    assert under_load(engine, WORK, most * 1.01) is None


def test_fewer_places_take_fewer_requests() -> None:
    assert highest_qps(a10g("mistral-7b", places=4), WORK) < highest_qps(a10g("mistral-7b"), WORK)
    assert highest_qps(a10g("mistral-7b", places=0), WORK) == 0


def test_one_token_is_no_decoding() -> None:
    speed = alone(a10g("tinyllama"), replace(WORK, output_tokens=1))
    assert speed.answer_seconds == speed.ttft_seconds
    assert highest_qps(a10g("tinyllama"), replace(WORK, output_tokens=1)) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": 0},
        {"output_tokens": -1},
        {"qps": 0},
        {"qps": float("nan")},
        {"min_containers": -1},
    ],
)
def test_a_load_that_is_none_is_named(change: dict[str, float]) -> None:
    flag = "--" + next(iter(change)).replace("_", "-")
    with pytest.raises(CapacityError, match=flag):
        replace(WORK, **change)

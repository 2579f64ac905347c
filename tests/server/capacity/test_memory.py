"""What fits, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.capacity.flags import EngineLimits
from server.capacity.hardware import GIB, gpu
from server.capacity.memory import kv_tokens, plan_memory, reserve_bytes
from server.profiles import NAMES, load_profile
from tests.server.capacity.shapes import SMALL

LIMITS = EngineLimits(max_model_len=128, max_num_seqs=4, max_batched_tokens=100, block_tokens=16)


def test_a_cache_holds_whole_blocks() -> None:
    block = 16 * SMALL.kv_bytes_per_token(2)
    assert kv_tokens(3 * block + block // 2, SMALL, LIMITS) == 48
    assert kv_tokens(block - 1, SMALL, LIMITS) == 0
    assert kv_tokens(-5, SMALL, LIMITS) == 0


def test_what_is_left_is_for_keys_and_values() -> None:
    total = 2 * GIB
    memory = plan_memory(SMALL, LIMITS, total, request_tokens=100)
    assert memory.usable_bytes == int(total * 0.92)
    assert memory.kv_bytes == memory.usable_bytes - memory.weights_bytes - memory.reserve_bytes
    assert memory.longest
    assert memory.requests == 4  # as many as may run, though more would fit


def test_requests_take_whole_blocks_too() -> None:
    block = 16 * SMALL.kv_bytes_per_token(2)
    explicit = replace(LIMITS, kv_cache_bytes=20 * block)
    # 100 tokens are 7 blocks: twice into 20.
    assert plan_memory(SMALL, explicit, 2 * GIB, 100).requests == 2


def test_a_cache_below_the_longest_request_does_not_fit() -> None:
    block = 16 * SMALL.kv_bytes_per_token(2)
    assert not plan_memory(SMALL, replace(LIMITS, kv_cache_bytes=7 * block), 2 * GIB, 10).longest
    assert plan_memory(SMALL, replace(LIMITS, kv_cache_bytes=8 * block), 2 * GIB, 10).longest
    # The cache is there, and the memory for it is not.
    assert not plan_memory(SMALL, replace(LIMITS, kv_cache_bytes=2 * GIB), 2 * GIB, 10).longest


def test_no_room_at_all() -> None:
    memory = plan_memory(SMALL, LIMITS, 2**20, 100)
    assert (memory.kv_bytes, memory.kv_tokens, memory.requests, memory.longest) == (0, 0, 0, False)


def test_more_at_once_leaves_less() -> None:
    assert reserve_bytes(SMALL, replace(LIMITS, max_num_seqs=8)) > reserve_bytes(SMALL, LIMITS)
    assert reserve_bytes(SMALL, replace(LIMITS, max_batched_tokens=200)) > reserve_bytes(
        SMALL, LIMITS
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_fits_the_a10g(name: str) -> None:
    from server.capacity.planner import Subject, fit_problems

    profile = load_profile(name)
    subject = Subject(name, profile.model, profile.architecture, profile.vllm_args)
    assert fit_problems(subject, gpu("A10G")) == ()

"""vLLM's flags, as far as they decide over memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.capacity.architecture import CapacityError
from server.capacity.flags import EngineLimits, limits_of, wants_fp8
from tests.server.capacity.shapes import SMALL


def test_vllm_s_defaults() -> None:
    assert limits_of([], SMALL) == EngineLimits(max_model_len=128)
    large = limits_of([], SMALL, large=True)
    assert (large.max_num_seqs, large.max_batched_tokens) == (1024, 8192)


def test_flags_in_each_of_their_forms() -> None:
    args = [
        "--max-model-len",
        "8k",
        "--max_num_seqs=16",
        "--kv-cache-memory-bytes=1G",
        "--block-size",
        "32",
    ]
    limits = limits_of([*args, "--dtype=float32", "--gpu-memory-utilization", "0.5"], SMALL)
    assert (limits.max_model_len, limits.max_num_seqs, limits.block_tokens) == (8000, 16, 32)
    assert (limits.kv_cache_bytes, limits.memory_share) == (2**30, 0.5)
    assert (limits.dtype_bytes, limits.kv_dtype_bytes) == (4, 4)


def test_of_a_flag_that_stands_twice_the_last_counts() -> None:
    assert limits_of(["--max-model-len", "10", "--max-model-len=20"], SMALL).max_model_len == 20


@pytest.mark.parametrize("value", ["auto", "-1"])
def test_a_length_left_to_vllm_is_the_model_s(value: str) -> None:
    assert limits_of([f"--max-model-len={value}"], SMALL).max_model_len == 128


def test_an_fp8_cache_takes_half() -> None:
    assert limits_of(["--kv-cache-dtype", "fp8_e5m2"], SMALL).kv_dtype_bytes == 1


@pytest.mark.parametrize(
    "args",
    [["--max-model-len=long"], ["--gpu-memory-utilization", "2"], ["--gpu-memory-utilization=x"]],
)
def test_a_number_that_is_none_is_named(args: list[str]) -> None:
    with pytest.raises(CapacityError, match=args[0].partition("=")[0]):
        limits_of(args, SMALL)


@pytest.mark.parametrize(
    "args", [["--tensor-parallel-size=4"], ["-pp", "2"], ["--quantization", "bitsandbytes"]]
)
def test_what_cannot_be_planned_is_said(args: list[str]) -> None:
    with pytest.raises(CapacityError, match=args[0].partition("=")[0].lstrip("-")):
        limits_of(args, SMALL)


def test_one_gpu_and_weights_that_are_stored_quantised_can() -> None:
    limits_of(["--tensor-parallel-size", "1"], SMALL)
    limits_of(["--quantization", "awq"], replace(SMALL, quantization="awq"))


def test_who_asks_for_fp8() -> None:
    assert wants_fp8(["--quantization", "fp8"])
    assert wants_fp8(["-q=fp8"])
    assert wants_fp8(["--kv-cache-dtype=fp8"])
    assert not wants_fp8(["--quantization", "awq", "--kv-cache-dtype"])

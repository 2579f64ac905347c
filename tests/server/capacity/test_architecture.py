"""Shapes: what publishers say of a model is what its shape comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.capacity.architecture import Weights
from server.profiles import load_profile
from tests.server.capacity.shapes import SMALL

#: Parameters by the publishers' safetensors indexes (bytes of bfloat16, halved), which the files' comments name.
PUBLISHED = {
    "qwen3-4b-bf16": 4_022_468_096,
    "mistral-7b": 7_248_023_552,
    "phi-3-mini": 3_821_079_552,
    "tinyllama": 1_100_048_384,
    "qwen3-8b": 8_190_735_360,
    "smollm2": 134_515_008,
}
#: Bytes of the quantised checkpoints' safetensors files, as their publishers and users name them: to 1 %.
ON_DISK = {"qwen3-4b": 3.43e9, "mistral-7b": 3.88 * 2**30, "qwen3-8b": 6.1e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_parameters(name: str) -> None:
    assert load_profile(name).architecture.parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ON_DISK)
def test_quantised_weights_take_what_the_files_take(name: str) -> None:
    weights = load_profile(name).architecture.weights
    assert weights.bytes(2) == pytest.approx(ON_DISK[name], rel=0.01)


def test_weights_of_a_small_shape_by_hand() -> None:
    assert SMALL.linear_parameters == 4_608
    assert SMALL.parameters == 4_608 + 2 * 160 + 2 * 2 * 16 + 16
    assert SMALL.weights == Weights(SMALL.parameters)
    assert SMALL.weights.bytes(4) == 2 * SMALL.weights.bytes(2)


def test_quantised_weights_of_a_small_shape_by_hand() -> None:
    small = replace(SMALL, bits=4, group_size=128, zero_points=True)
    groups = 4_608 // 128
    rest = SMALL.parameters - 4_608
    assert small.weights == Weights(rest + groups, (4_608 + groups) // 2)


def test_only_an_untied_input_table_is_not_read() -> None:
    tied = replace(SMALL, tied_embeddings=True)
    assert SMALL.bytes_read_a_step(2) == SMALL.weights.bytes(2) - 2 * 160
    assert tied.bytes_read_a_step(2) == tied.weights.bytes(2)


def test_keys_and_values_of_a_token() -> None:
    assert SMALL.kv_bytes_per_token(2) == 2 * 2 * 1 * 8 * 2
    # The figure that `server/bundled.py` was written with.
    assert load_profile("smollm2").architecture.kv_bytes_per_token(2) == 23_040

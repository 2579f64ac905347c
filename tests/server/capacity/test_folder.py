"""A model folder, read by its headers: real safetensors files, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from server.capacity.architecture import CapacityError, Weights
from server.capacity.folder import read_folder

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 10, "max_position_embeddings": 128,
}  # fmt: skip


def folder(tmp_path: Path, config: Any = CONFIG) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "packed": torch.zeros(2, 4, dtype=torch.int32),
        "eight": torch.zeros(7, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(1)}, tmp_path / "model-2.safetensors")
    return tmp_path


def test_elements_by_kind_over_all_files(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path))
    assert found.weights == Weights(float_elements=16, packed_bytes=8 * 4 + 7)
    assert (found.head_dim, found.kv_heads, found.tied_embeddings) == (8, 1, False)


def test_a_copy_beside_the_shards_is_not_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "consolidated.safetensors")
    assert read_folder(folder(tmp_path)).weights.float_elements == 16


def test_the_language_model_of_several(tmp_path: Path) -> None:
    nested = {"text_config": CONFIG, "quantization_config": {"quant_method": "fp8"}}
    found = read_folder(folder(tmp_path, nested))
    assert (found.layers, found.quantization) == (2, "fp8")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**CONFIG, "hidden_size": None}, "config.json"),
        ({k: v for k, v in CONFIG.items() if k != "vocab_size"}, "no vocab_size"),
        ({**CONFIG, "num_experts": 8}, "mixture of experts"),
        ([], "no object"),
    ],
)
def test_a_configuration_that_is_not_understood(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(CapacityError, match=words):
        read_folder(folder(tmp_path, config))


def test_no_folder_no_files_no_header(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"config\.json"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CapacityError, match="safetensors"):
        read_folder(tmp_path)
    for broken in (
        b"",
        b"\xff" * 8,
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x09" + b"\0" * 7 + b'{"a": {}}',
    ):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(CapacityError, match="no safetensors header"):
            read_folder(tmp_path)

"""A model folder's shape and size, from `config.json` and the headers of its safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from server.capacity.architecture import Architecture, CapacityError, Weights

#: Element types that vLLM keeps in the engine's own dtype; all others are packed weights, kept as they are.
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
PACKED_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
#: More than the header of the largest models; a broken file claims anything.
MAX_HEADER_BYTES = 2**27


def read_folder(folder: Path) -> Architecture:
    """The architecture of a transformers folder. Raises CapacityError naming what is missing or not understood."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CapacityError(f"{folder}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CapacityError(f"{folder}: config.json is no object")
    return replace(architecture_of(config, str(folder)), stored=_stored(folder))


def architecture_of(config: dict[str, Any], where: str) -> Architecture:
    """The shape that a transformers configuration describes. Raises CapacityError for a missing field or a MoE."""
    text = {**config, **config.get("text_config", {})}
    if text.get("num_experts") or text.get("num_local_experts"):
        raise CapacityError(
            f"{where}: a mixture of experts, which the plan's arithmetic is not for"
        )
    try:
        heads = int(text["num_attention_heads"])
        hidden = int(text["hidden_size"])
        return Architecture(
            layers=int(text["num_hidden_layers"]),
            hidden_size=hidden,
            intermediate_size=int(text["intermediate_size"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocabulary=int(text["vocab_size"]),
            max_positions=int(text["max_position_embeddings"]),
            tied_embeddings=bool(text.get("tie_word_embeddings", False)),
            quantization=str((text.get("quantization_config") or {}).get("quant_method", "none")),
        )
    except KeyError as error:
        raise CapacityError(f"{where}: config.json has no {error.args[0]}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CapacityError(f"{where}: config.json: {error}") from error


def _stored(folder: Path) -> Weights:
    # Mistral's own copy lies beside the shards; vLLM reads the shards.
    found = sorted(folder.glob("*.safetensors"))
    files = [file for file in found if not file.name.startswith("consolidated")] or found
    if not files:
        raise CapacityError(f"{folder}: there is no *.safetensors file")
    floats = packed = 0
    for file in files:
        for dtype, elements in _tensors(file):
            if dtype in FLOATS:
                floats += elements
            else:
                packed += elements * PACKED_BYTES.get(dtype, 1)
    return Weights(floats, packed)


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """Type and number of elements of each tensor, from the file's header alone."""
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield str(tensor["dtype"]), prod(tensor["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CapacityError(f"{file}: no safetensors header: {error}") from error

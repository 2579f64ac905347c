"""What a sentence-transformers folder says about its model: limits, pooling, prefixes, exported files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retrieval.embed.prefixes import Prefixes, choose_prefixes
from retrieval.errors import EmbedderError

Pooling = Literal["mean", "cls"]

#: Where exporters of the hub put their files; ours uses the same names.
_OPENVINO_FILE = "openvino/openvino_model.xml"
_ONNX_FILES = ("onnx/model.onnx", "model.onnx")

#: The modules that the fast backends can stand in for (the last part of a module's type).
_PLAIN_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A local model. `max_length_tokens` counts special tokens.

    `plain` is false when the model has modules or a pooling that only sentence-transformers knows.
    """

    path: Path
    dimension: int
    max_length_tokens: int
    pooling: Pooling
    prefixes: Prefixes
    plain: bool

    @property
    def name(self) -> str:
        return self.path.name


def openvino_file(folder: Path) -> Path | None:
    """The folder's OpenVINO graph, if it has one."""
    path = folder / _OPENVINO_FILE
    return path if path.is_file() else None


def onnx_file(folder: Path) -> Path | None:
    """The folder's ONNX graph, if it has one."""
    return next((folder / name for name in _ONNX_FILES if (folder / name).is_file()), None)


def read_folder(path: Path, query_prefix: str | None) -> ModelFolder:
    """Read the model's description. Raises EmbedderError naming the file that is missing or broken."""
    config = _read_json(path / "config.json", required=True)
    sentence = _read_json(path / "sentence_bert_config.json")
    modules = _read_modules(path)
    pooling = _read_json(path / modules.get("Pooling", "1_Pooling") / "config.json")
    mode = _pooling_mode(pooling)
    prompts = _read_json(path / "config_sentence_transformers.json").get("prompts") or {}
    prefixes = choose_prefixes(path.name, prompts, query_prefix)
    pools_prompt = pooling.get("include_prompt", True) or prefixes == Prefixes()
    dimension = config.get("hidden_size")
    return ModelFolder(
        path=path,
        dimension=dimension if isinstance(dimension, int) else 0,
        max_length_tokens=_max_length(path, config, sentence),
        pooling="cls" if mode == "cls" else "mean",
        prefixes=prefixes,
        plain=isinstance(dimension, int)
        and set(modules) <= _PLAIN_MODULES
        and mode in ("mean", "cls")
        and bool(pools_prompt)
        and (path / "tokenizer.json").is_file(),
    )


def _max_length(path: Path, config: dict[str, Any], sentence: dict[str, Any]) -> int:
    """sentence-transformers' rule: its own limit, else the smaller of the tokenizer's and the positions."""
    own = sentence.get("max_seq_length")
    if isinstance(own, int):
        return own
    tokenizer = _read_json(path / "tokenizer_config.json")
    limits = (config.get("max_position_embeddings"), tokenizer.get("model_max_length"))
    known = [limit for limit in limits if isinstance(limit, int)]
    if not known:
        raise EmbedderError(
            f"embedder {path}: neither sentence_bert_config.json (max_seq_length) nor config.json "
            "(max_position_embeddings) says how long a text may be; add one of them"
        )
    return min(known)


def _pooling_mode(config: dict[str, Any]) -> str:
    """The one pooling mode of a Pooling config, in its old form (flags) or its new one (a name)."""
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return mode
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if not flags and mode is None:
        return "mean"  # a plain transformer folder: what sentence-transformers does with it
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return names.get(flags[0], "other") if len(flags) == 1 else "other"


def _read_modules(path: Path) -> dict[str, str]:
    """Module type -> its folder; empty for a plain transformer folder."""
    file = path / "modules.json"
    if not file.is_file():
        return {}
    try:
        return {
            str(m["type"]).rsplit(".", 1)[-1]: str(m["path"]) for m in json.loads(file.read_text())
        }
    except (ValueError, TypeError, KeyError) as error:
        raise EmbedderError(f"embedder {path}: modules.json cannot be read ({error})") from error


def _read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    if not file.is_file() and not required:
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmbedderError(
            f"embedder {file.parent}: {file.name} cannot be read ({error})"
        ) from error
    if not isinstance(value, dict):
        raise EmbedderError(f"embedder {file.parent}: {file.name} is not a JSON object")
    return value

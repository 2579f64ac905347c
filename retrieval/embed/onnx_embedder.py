"""Embedding by ONNX Runtime, for folders that come with an ONNX file. The one file that imports onnxruntime."""

from __future__ import annotations

import numpy as np

from retrieval.embed.base import Vectors
from retrieval.embed.folder import ModelFolder, onnx_file
from retrieval.embed.tokenize import FolderEmbedder, Tokens
from retrieval.errors import EmbedderError


def open_onnx(model: ModelFolder, *, threads: int) -> FolderEmbedder:
    """The folder's embedder on ONNX Runtime, in the file's own precision. Raises EmbedderError."""
    file = onnx_file(model.path)
    if file is None or not model.plain:
        missing = (
            "has no onnx/model.onnx" if file is None else "needs sentence-transformers' own modules"
        )
        raise EmbedderError(f"embedder {model.path} {missing}; use backend 'torch' or 'auto'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception types are private
        raise EmbedderError(f"embedder {file} cannot be opened ({error})") from error
    wanted = {item.name for item in session.get_inputs()}
    output = session.get_outputs()[0].name

    def forward(ids: Tokens, mask: Tokens) -> Vectors:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            results = session.run([output], {k: v for k, v in inputs.items() if k in wanted})
        except Exception as error:  # onnxruntime's own exception types are private
            raise EmbedderError(f"embedder {model.name} failed on ONNX Runtime: {error}") from error
        return np.asarray(results[0], dtype=np.float32)

    return FolderEmbedder(model, forward, forward)

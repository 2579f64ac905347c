"""The embedders against sentence-transformers' own vectors, with padding in the batch."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.embed import BUNDLED_MODEL, Embedder, EmbedderSpec, Vectors, load_embedder
from retrieval.embed.tokenize import FolderEmbedder
from retrieval.embed.torch_embedder import TorchEmbedder
from retrieval.errors import EmbedderError
from server.bundled import prepare_embedder
from server.settings import Settings

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino comes with the extra `cpu`"
)

#: Lengths from two tokens to beyond the model's limit, so that every batch is padded and one text is cut.
TEXTS = [
    "How long is the warranty of the red pump?",
    "",
    "  \n ",
    "pump " * 90,
    "Grüße aus Köln: 12,345.67 € — naïve café 漢字 👍",
    "the pump is opened by trained people only when the pressure is low. " * 40,
    "<|im_end|> [SEP] [CLS] a\x00b",
    "x",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare_embedder(Settings().models_dir, print)


@pytest.fixture(scope="module")
def fast(folder: Path) -> Embedder:
    return load_embedder(EmbedderSpec(BUNDLED_MODEL, folder.parent))


@pytest.fixture(scope="module")
def torch_embedder(folder: Path) -> Embedder:
    return load_embedder(EmbedderSpec(BUNDLED_MODEL, folder.parent, backend="torch"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False))


def linked(folder: Path, to: Path, *leave_out: str) -> Path:
    """A copy of a model's folder made of links, without some of its entries."""
    to.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry.name not in leave_out:
            (to / entry.name).symlink_to(entry)
    return to


def cosines(left: Vectors, right: Vectors) -> Vectors:
    rows: Vectors = (left * right).sum(axis=1)
    return rows


def test_fast_vectors_are_the_reference_vectors(fast: Embedder, reference: Vectors) -> None:
    queries = fast.embed_queries(TEXTS)
    assert cosines(queries, reference).min() > 0.9999
    assert queries.shape == (len(TEXTS), fast.dimension)
    assert queries.dtype == np.float32
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    # bfloat16 is allowed for passages, on CPUs that have it.
    assert cosines(fast.embed_passages(TEXTS), reference).min() > 0.999


@needs_openvino
def test_queries_in_int8_are_near_the_reference_vectors(folder: Path, reference: Vectors) -> None:
    rounded = load_embedder(EmbedderSpec(BUNDLED_MODEL, folder.parent, query_precision="int8"))
    queries = rounded.embed_queries(TEXTS)
    near = cosines(queries, reference)
    assert near.min() > 0.99  # of all these, a lone letter and control characters are the furthest
    assert near[[0, 3, 5]].min() > 0.997
    assert near.max() < 0.999999, "nothing was rounded"
    assert cosines(rounded.embed_passages(TEXTS), reference).min() > 0.999
    # Each text is still nearest to itself.
    assert ((queries @ reference.T).argmax(axis=1)[[0, 3, 4, 5, 6, 7]] == [0, 3, 4, 5, 6, 7]).all()


def test_torch_vectors_are_the_reference_vectors(
    torch_embedder: Embedder, reference: Vectors
) -> None:
    assert isinstance(torch_embedder, TorchEmbedder)
    assert cosines(torch_embedder.embed_queries(TEXTS), reference).min() > 0.9999
    assert (
        cosines(torch_embedder.embed_passages(TEXTS * 2), np.tile(reference, (2, 1))).min() > 0.9999
    )


@pytest.mark.parametrize("which", ["fast", "torch_embedder"])
def test_what_an_embedder_says_of_itself(which: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(which)
    assert (embedder.name, embedder.dimension, embedder.max_tokens) == (BUNDLED_MODEL, 384, 254)
    assert embedder.embed_passages([]).shape == (0, 384)
    assert embedder.count_tokens("") == 0
    assert embedder.count_tokens("pump pump") == 2
    assert embedder.count_tokens("pump " * 5000) == 5000


@pytest.mark.parametrize("which", ["fast", "torch_embedder"])
def test_the_last_token_that_fits_is_read_and_the_next_is_not(
    which: str, request: pytest.FixtureRequest
) -> None:
    embedder: Embedder = request.getfixturevalue(which)
    full = "pump " * embedder.max_tokens
    one_less, whole, longer = embedder.embed_queries([full[:-5], full, full + "zebra " * 9])
    assert np.allclose(whole, longer, atol=1e-6)
    assert not np.allclose(whole, one_less, atol=1e-6)


def test_many_passages_come_back_in_their_own_order(fast: Embedder) -> None:
    texts = [f"{'long ' * (n * 7 % 50)}number {n}" for n in range(70)]
    together = fast.embed_passages(texts)
    alone = np.concatenate([fast.embed_passages([text]) for text in texts])
    assert cosines(together, alone).min() > 0.999
    assert (together @ alone.T).argmax(axis=1).tolist() == list(range(70))


@pytest.mark.parametrize("which", ["fast", "torch_embedder"])
def test_several_threads_may_embed_at_once(which: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(which)
    texts = [f"pump number {n} " * (1 + n % 9) for n in range(24)]
    expected = embedder.embed_queries(texts)
    with ThreadPoolExecutor(6) as pool:
        found = np.concatenate(list(pool.map(lambda text: embedder.embed_queries([text]), texts)))
    assert cosines(expected, found).min() > 0.9999


def test_torchs_threads_are_limited_for_the_embedder_alone(folder: Path) -> None:
    """In a process of its own, because the number of threads belongs to the process."""
    program = f"""
import torch
from pathlib import Path
from retrieval.embed.torch_embedder import TorchEmbedder
torch.set_num_threads(3)
embedder = TorchEmbedder({str(folder)!r}, name="m", device="cpu", query_prefix=None, threads=1)
print(embedder._call(torch.get_num_threads), torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "3"], done.stderr


# Which backend, which folder


@needs_openvino
def test_auto_takes_the_fast_backend_where_the_folder_has_its_files(
    folder: Path, tmp_path: Path
) -> None:
    assert isinstance(load_embedder(EmbedderSpec(str(folder), tmp_path)), FolderEmbedder)
    bare = linked(folder, tmp_path / "bare", "openvino")
    assert isinstance(load_embedder(EmbedderSpec(str(bare), tmp_path)), TorchEmbedder)


@needs_openvino
def test_auto_leaves_models_with_more_modules_to_sentence_transformers(
    folder: Path, tmp_path: Path
) -> None:
    model = linked(folder, tmp_path / "odd", "1_Pooling")
    (model / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 384, "pooling_mode_max_tokens": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert isinstance(load_embedder(EmbedderSpec("odd", tmp_path)), TorchEmbedder)
    with pytest.raises(EmbedderError, match="needs its own modules"):
        load_embedder(EmbedderSpec("odd", tmp_path, backend="openvino"))


@pytest.fixture
def bge(folder: Path, tmp_path: Path) -> EmbedderSpec:
    """The bundled weights under the name of a model that wants a query prefix."""
    linked(folder, tmp_path / "BAAI" / "bge-small-en-v1.5", "config_sentence_transformers.json")
    return EmbedderSpec("BAAI/bge-small-en-v1.5", tmp_path)


def prefix_is(embedder: Embedder, prefix: str) -> bool:
    """Whether queries, and only they, are embedded as `prefix` + text."""
    query = embedder.embed_queries(["red pump"])
    return bool(cosines(query, embedder.embed_passages([prefix + "red pump"]))[0] > 0.999)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_query_prefix_of_a_known_model(bge: EmbedderSpec, backend: Any) -> None:
    known = "Represent this sentence for searching relevant passages: "
    assert prefix_is(load_embedder(replace(bge, backend=backend)), known)
    explicit = load_embedder(replace(bge, backend=backend, query_prefix="find: "))
    assert prefix_is(explicit, "find: ")
    assert not prefix_is(explicit, known)
    assert prefix_is(load_embedder(replace(bge, backend=backend, query_prefix="")), "")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_models_own_prompts_come_before_the_table(bge: EmbedderSpec, backend: Any) -> None:
    config = {"prompts": {"query": "own query: ", "document": "own text: "}}
    model = bge.models_dir / bge.model
    (model / "config_sentence_transformers.json").write_text(json.dumps(config))
    own = load_embedder(replace(bge, backend=backend))
    plain = load_embedder(EmbedderSpec(BUNDLED_MODEL, Settings().models_dir))
    expected = plain.embed_queries(["own query: red pump", "own text: red pump"])
    assert cosines(own.embed_queries(["red pump"]), expected[:1])[0] > 0.999
    assert cosines(own.embed_passages(["red pump"]), expected[1:])[0] > 0.999
    assert own.max_tokens == 254 - plain.count_tokens("own text: ")


# Bad input


def test_the_bundled_model_before_it_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="groundwire ingest"):
        load_embedder(EmbedderSpec(BUNDLED_MODEL, tmp_path))


@pytest.mark.parametrize("model", ["./nothing-here", "/nothing/here"])
def test_a_path_that_is_not_there(model: str, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"not a model folder.*nothing"):
        load_embedder(EmbedderSpec(model, tmp_path))


def test_a_name_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedderError, match=r"nobody/no-such-model.*local cache.*all-MiniLM"):
        load_embedder(EmbedderSpec("nobody/no-such-model", tmp_path))
    with pytest.raises(EmbedderError, match="needs a local folder"):
        load_embedder(EmbedderSpec("nobody/no-such-model", tmp_path, backend="onnx"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "modules.json"])
def test_a_broken_file_is_named(file: str, folder: Path, tmp_path: Path) -> None:
    model = linked(folder, tmp_path / "broken", file)
    (model / file).write_text("{not json")
    with pytest.raises(EmbedderError, match=f"broken.*{file}|{file}.*cannot be read"):
        load_embedder(EmbedderSpec(str(model), tmp_path))


@needs_openvino
def test_a_broken_graph_is_named(folder: Path, tmp_path: Path) -> None:
    model = linked(folder, tmp_path / "broken", "openvino")
    (model / "openvino").mkdir()
    (model / "openvino" / "openvino_model.xml").write_text("<net")
    with pytest.raises(EmbedderError, match=r"openvino_model\.xml"):
        load_embedder(EmbedderSpec(str(model), tmp_path)).embed_queries(["x"])


def test_a_backend_that_does_not_fit_the_request(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="runs on the CPU"):
        load_embedder(EmbedderSpec(str(folder), tmp_path, device="cuda", backend="onnx"))
    with pytest.raises(EmbedderError, match=r"no onnx/model\.onnx"):
        load_embedder(EmbedderSpec(str(folder), tmp_path, backend="onnx"))


# ONNX: a one-node graph (a table of token vectors), written here byte by byte because no ONNX writer
# is among the dependencies. Field numbers are those of onnx/onnx.proto.

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "red": 2, "pump": 3, "valve": 4}
TABLE = np.array([[9, 9], [0, 1], [3, 0], [0, 5], [-1, 2]], dtype=np.float32)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_info(name: str, element: int, shape: list[str | int]) -> bytes:
    dims = b"".join(field(1, field(1 if isinstance(d, int) else 2, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, element) + field(2, dims)))


def onnx_table() -> bytes:
    floats, integers = 1, 7
    node = field(1, "table") + field(1, "input_ids") + field(2, "hidden") + field(4, "Gather")
    dims = b"".join(field(1, size) for size in TABLE.shape)
    table = dims + field(2, floats) + field(8, "table") + field(9, TABLE.tobytes())
    graph = field(1, node) + field(2, "g") + field(5, table)
    graph += field(11, tensor_info("input_ids", integers, ["n", "t"]))
    graph += field(12, tensor_info("hidden", floats, ["n", "t", 2]))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tmp_path / "tiny"
    (model / "onnx").mkdir(parents=True)
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text('{"hidden_size": 2, "max_position_embeddings": 4}')
    (model / "onnx" / "model.onnx").write_bytes(onnx_table())
    return model


def test_onnx_runtime_pools_without_the_padding(tiny: Path) -> None:
    embedder = load_embedder(EmbedderSpec(str(tiny), tiny))
    assert (embedder.name, embedder.dimension, embedder.max_tokens) == ("tiny", 2, 4)
    found = embedder.embed_passages(["red", "red pump valve", "pump pump pump pump red"])
    means = [TABLE[2], TABLE[[2, 3, 4]].mean(axis=0), TABLE[3]]
    expected = np.array([mean / np.linalg.norm(mean) for mean in means])
    assert np.allclose(found, expected, atol=1e-6)


def test_cls_pooling_takes_the_first_token(tiny: Path) -> None:
    modules = [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": "1_Pooling"}]
    (tiny / "modules.json").write_text(json.dumps(modules))
    (tiny / "1_Pooling").mkdir()
    (tiny / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    embedder = load_embedder(EmbedderSpec(str(tiny), tiny, backend="onnx"))
    assert np.allclose(embedder.embed_queries(["pump red", "red"]), [[0, 1], [1, 0]])


def test_a_text_of_no_tokens_has_a_vector(tiny: Path) -> None:
    """A tokenizer without special tokens leaves nothing of an empty text."""
    embedder = load_embedder(EmbedderSpec(str(tiny), tiny))
    assert np.isfinite(embedder.embed_passages(["", "red"])).all()
    assert np.isfinite(embedder.embed_passages([""])).all()


def test_a_broken_onnx_file_is_named(tiny: Path) -> None:
    (tiny / "onnx" / "model.onnx").write_bytes(b"\x00" + struct.pack("<q", 1))
    with pytest.raises(EmbedderError, match=r"model\.onnx"):
        load_embedder(EmbedderSpec(str(tiny), tiny))

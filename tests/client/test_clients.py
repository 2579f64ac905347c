"""Unmodified clients against the real engine: `base_url` is all that changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types import VectorStoreSearchResponse

from tests.engine.real import QUESTION, RealServer

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
CLIENTS_PYTHON = HERE.parents[1] / ".venv-clients" / "bin" / "python"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
ASK: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": MESSAGES,
    "max_tokens": 12,
    "temperature": 0,
}


def run_client(script: str, real: RealServer) -> dict[str, Any]:
    """Run a script in the clients' own environment: they need another major version of `openai`."""
    assert CLIENTS_PYTHON.exists(), "the clients' environment is missing: run `make test`"
    done = subprocess.run(
        [CLIENTS_PYTHON, HERE / script, real.url, QUESTION],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture
def client(real: RealServer) -> OpenAI:
    return OpenAI(base_url=f"{real.url}/v1", api_key="unused", max_retries=0)


def test_openai_whole(client: OpenAI) -> None:
    # Of its own: what another test has asked comes out of a cache, without these stages.
    question = {"role": "user", "content": f"Tell me: {QUESTION}"}
    raw = client.chat.completions.with_raw_response.create(**{**ASK, "messages": [question]})
    answer = raw.parse()
    assert raw.headers["x-rag-status"] == "hit"
    assert answer.model == "gpt-4o-mini"
    message = answer.choices[0].message
    assert message.annotations is not None
    citation = message.annotations[0].url_citation
    assert citation.title == "lamp.md"
    passage = httpx.get(citation.url).json()
    assert "417 days" in passage["text"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.model_extra is not None
    rag = answer.model_extra["rag"]
    found = VectorStoreSearchResponse.model_validate(rag["search_results"][0]["data"][0])
    assert found.filename == "lamp.md"
    assert {"embed", "search", "lexical", "prefill", "decode"} <= rag["timings_ms"].keys()


def test_openai_stream_helper(client: OpenAI) -> None:
    # A natural end: the helper raises at an answer that was cut by its length, as it does with OpenAI.
    ask = {**ASK, "max_tokens": 200, "stop": [".", "\n"]}
    with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") > 1
    assert final.usage is not None
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.annotations is not None
    assert final.model_extra is not None
    assert final.model_extra["rag"]["status"] == "hit"
    whole = client.chat.completions.create(**ask)
    assert final.choices[0].message.content == whole.choices[0].message.content


@pytest.mark.anyio
async def test_openai_async_stream(real: RealServer) -> None:
    async with AsyncOpenAI(base_url=f"{real.url}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["rag"]["status"] == "hit"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openai_multi_turn_echoes_what_it_got(client: OpenAI) -> None:
    """The SDK's own message object, annotations and all, is sent back as the earlier turn."""
    first = client.chat.completions.create(**ASK).choices[0].message
    history: list[Any] = [*MESSAGES, first, {"role": "user", "content": "And who handles claims?"}]
    second = client.chat.completions.create(**{**ASK, "messages": history})
    assert second.choices[0].message.content


def test_openai_errors_are_typed(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(**{**ASK, "model": "no-such-model"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as wrong:
        client.chat.completions.create(**ASK, extra_body={"rag": {"max_num_results": 0}})
    assert wrong.value.param == "rag.max_num_results"


def test_openai_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["SmolLM2-135M-Instruct", "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct@facts"]
    assert client.models.retrieve("SmolLM2-135M-Instruct@facts").id == names[2]


def test_langchain(real: RealServer) -> None:
    seen = run_client("langchain_chat.py", real)
    assert seen["text"]
    assert seen["model"] == "gpt-4o-mini"
    assert seen["text"] == seen["streamed"] == seen["astreamed"]
    assert seen["headers"]["x-rag-status"] == "hit"
    assert seen["stream_headers"]["x-rag-sources"].startswith("file-")
    assert seen["usage"]["output_tokens"] == 12


def test_llama_index(real: RealServer) -> None:
    seen = run_client("llama_index_chat.py", real)
    assert seen["text"]
    assert seen["text"] == seen["streamed"]
    assert seen["rag"] == "hit"
    assert seen["stream_sourced"]


def test_llama_index_as_it_comes(real: RealServer) -> None:
    """Without `is_chat_model` it asks for text completions."""
    seen = run_client("llama_index_completion.py", real)
    assert seen["text"]
    assert seen["text"] == seen["by_body"] == seen["streamed"] == seen["astreamed"]
    assert seen["rag"] == "hit"
    assert seen["stream_sourced"]
    assert not seen["plain_rag"]

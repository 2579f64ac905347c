"""`max_stream_seconds` over the real engine: it stops, and what the client was told adds up."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.telemetry.exposition import exposition
from tests.engine.real import QUESTION, RealServer
from tests.server.api.bench import eventually
from tests.server.api.test_chat import payloads

pytestmark = pytest.mark.engine

LIMIT_SECONDS = 2.0
#: A token takes some tens of milliseconds here: far more of them than the limit has time for. Special tokens
#: are shown, for the usage is counted from what is: past its end a model says many of them.
ENDLESS = {
    "max_tokens": 1500,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "return_token_ids": True,
}


def running(real: RealServer) -> float:
    page = exposition(real.services.metrics.registry, "")[0].decode()
    return sum(float(n) for n in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.M))


async def stream(real: RealServer, path: str, body: dict[str, Any]) -> str:
    """The whole stream, from an app with the setting over the same engine."""
    settings = real.services.settings.model_copy(update={"max_stream_seconds": LIMIT_SECONDS})
    app = create_app(settings)
    app.state.services = replace(real.services, settings=settings)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.post(path, json={**ENDLESS, **body, "stream": True}, timeout=60)
        assert response.status_code == 200, response.text
        return response.text


@pytest.mark.parametrize("grounded", [True, False])
def test_a_chat(real: RealServer, grounded: bool) -> None:
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": QUESTION}],
        "stream_options": {"include_usage": True},
        "n": 2,
        "rag": {"enabled": grounded},
    }
    text = real.run(stream(real, "/v1/chat/completions", body))
    assert text.endswith("data: [DONE]\n\n")
    *chunks, last = payloads(text)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
    assert sorted(ends) == [(0, "length"), (1, "length")]
    tokens = sum(len(choice.get("token_ids") or ()) for choice in choices)
    assert tokens > 0
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    # Text that is cut within a word or a character can be tokenized otherwise than it was generated.
    assert last["usage"]["completion_tokens"] == pytest.approx(tokens, rel=0.05, abs=2), said
    assert last["usage"]["prompt_tokens"] > 10
    eventually(lambda: running(real) == 0)


def test_a_text_completion(real: RealServer) -> None:
    body = {"model": "SmolLM2-135M-Instruct", "prompt": [QUESTION, "Two and two are"]}
    chunks = payloads(real.run(stream(real, "/v1/completions", body)))
    ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert [end for end in ends if end] == ["length", "length"]
    eventually(lambda: running(real) == 0)

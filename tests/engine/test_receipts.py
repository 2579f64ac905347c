"""Receipts and dry runs beside the real engine: its counts, its cache, its timings."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engine.real import QUESTION, RealServer
from tests.engine.test_parity import TOOLS

pytestmark = pytest.mark.engine

CHAT: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
    "max_tokens": 4,
    "rag": {"max_num_results": 1},
}
TEXT: dict[str, Any] = {
    "model": "gpt-4o@facts",
    "prompt": [QUESTION, "Morva tea is"],
    "max_tokens": 4,
    "rag": {"max_num_results": 1},
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "tools": TOOLS, "n": 2}),
        ("/v1/chat/completions", {**CHAT, "rag": {"enabled": False}}),
        ("/v1/completions", TEXT),
    ],
)
def test_a_dry_run_counts_what_the_answer_takes(
    real: RealServer, path: str, body: dict[str, Any]
) -> None:
    with httpx.Client(base_url=real.url, timeout=120, trust_env=False) as client:
        dry = client.post(path, json={**body, "rag": {**body["rag"], "dry_run": True}}).json()
        answer = client.post(path, json=body).json()
        receipt = client.get(f"/v1/rag/receipts/{answer['id']}").json()
    usage, tokens = answer["usage"], receipt["tokens"]
    assert dry["tokens"]["prompt"] == tokens["prompt"] == usage["prompt_tokens"]
    assert tokens["client"] + tokens["context"] == tokens["prompt"]
    assert (
        (tokens["context"] > 0) is (receipt["status"] == "hit") is body["rag"].get("enabled", True)
    )
    assert tokens["context"] <= tokens["context_charged"]
    assert dry["tokens"]["messages"] + dry["tokens"]["template"] == dry["tokens"]["client"]
    assert tokens["completion"] == usage["completion_tokens"]
    assert tokens["cached"] is not None
    assert {"queue", "prefill", "decode"} <= receipt["timings_ms"].keys()
    assert not {"queue", "prefill", "decode"} & dry["timings_ms"].keys()

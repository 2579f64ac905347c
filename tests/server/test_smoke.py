"""One question from outside, and its rows."""

from __future__ import annotations

import httpx
import pytest

from server.smoke import Answer, Question, SmokeFailed, ask, rows


def answer(timings_ms: dict[str, float], seconds: float) -> Answer:
    return Answer("text", "hit", ("a.md",), timings_ms, seconds, 0.0)


def test_rows_follow_the_critical_path_and_add_up() -> None:
    timings = {"embed": 6.0, "search": 4.0, "lexical": 2.0, "fuse": 1.0, "pack": 3.0}
    llm = {"queue": 10.0, "prefill": 90.0, "decode": 400.0}
    found = dict(rows(answer({**timings, **llm}, 0.6)))
    assert found["embedding"] == pytest.approx(0.006)
    assert found["retrieval"] == pytest.approx(0.008)
    assert found["LLM"] == pytest.approx(0.5)
    assert sum(found.values()) - found["total"] == pytest.approx(found["total"]) == 0.6


def test_a_keyword_search_that_outlasts_the_vector_counts() -> None:
    found = dict(rows(answer({"embed": 2.0, "search": 1.0, "lexical": 10.0}, 0.02)))
    assert found["embedding"] + found["retrieval"] == pytest.approx(0.010)


def client(status: int, body: object, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A server that is there, and that answers chat with `body`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return httpx.Response(200)
        return httpx.Response(status, json=body, headers=headers)

    return httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "headers", "message"),
    [
        (401, {"error": {"message": "no key"}}, {}, "answered 401: no key"),
        (500, ["no object"], {}, "answered 500"),
        (200, {"choices": []}, {}, "did not answer as OpenAI's API does"),
        (
            200,
            {"choices": [{"message": {"content": "x"}}]},
            {"x-rag-status": "off"},
            "not grounded",
        ),
        (
            200,
            {"choices": [{"message": {"content": "x"}}], "rag": {"reason": "timeout"}},
            {"x-rag-status": "degraded"},
            "skipped .timeout.",
        ),
        (
            200,
            {"choices": [{"message": {"content": "x"}}], "rag": {"reason": "below_similarity"}},
            {"x-rag-status": "miss"},
            "no passage answers the question .below_similarity.: .* --question",
        ),
        (
            200,
            {"choices": [{"message": {"content": "x"}}], "rag": {"reason": "no_store"}},
            {"x-rag-status": "miss"},
            "no_store.: publish or ingest documents",
        ),
    ],
)
async def test_what_is_no_grounded_answer_is_said(
    status: int, body: object, headers: dict[str, str], message: str
) -> None:
    async with client(status, body, headers) as http:
        with pytest.raises(SmokeFailed, match=message):
            await ask(http, Question("?"))

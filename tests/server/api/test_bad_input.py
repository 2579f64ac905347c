"""Bad input: OpenAI's envelope with the field named; never a 500, never a hang."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.api.bench import QUESTION, ROUTE, Bench, Running, chat

MIB = 2**20
USER = {"role": "user", "content": QUESTION}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in an answer that must be an envelope."""
    body = response.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert response.headers["x-request-id"]
    assert response.status_code != 422
    return error


def post(
    running: Running, content: bytes, kind: str = "application/json", path: str = ROUTE
) -> httpx.Response:
    return running.client.post(path, content=content, headers={"content-type": kind})


NOT_JSON = [
    b"",
    b"{",
    b"not json",
    b'{"messages": [}',
    b'{"model": "\xff\xfe"}',
    b"\xff\xfe{\x00}\x00",
    b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    b'{"temperature": Infinity}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\\udc00\\ud800"}]}',
    b'{"a": 1} {"b": 2}',
    b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
]
NO_OBJECT = [b"[]", b'"text"', b"5", b"null", b"true", b'[{"messages": []}]']


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json(shared: Running, content: bytes) -> None:
    response = post(shared, content)
    assert response.status_code == 400
    assert "not valid JSON" in error_of(response)["message"]


@pytest.mark.parametrize("content", NO_OBJECT)
def test_what_is_no_object(shared: Running, content: bytes) -> None:
    response = post(shared, content)
    assert response.status_code == 400
    assert "JSON object" in error_of(response)["message"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_content_type(shared: Running, kind: str) -> None:
    response = post(shared, json.dumps(chat()).encode(), kind)
    assert response.status_code == 400
    assert error_of(response)["param"] == "Content-Type"


def test_a_content_type_with_parameters_is_fine(shared: Running) -> None:
    assert (
        post(shared, json.dumps(chat()).encode(), "Application/JSON; charset=utf-8").status_code
        == 200
    )


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": None}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": {}}, 400, "messages"),
        ({"messages": [{"role": 5, "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": {}}]}, 400, "messages.0.content"),
        ({"model": ["x"]}, 400, "model"),
        ({"model": "llama-9"}, 404, "model"),
        ({"model": "text-embedding-3-small"}, 400, "model"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": 5}, 400, "stream_options"),
        ({"n": "two"}, 400, "n"),
        ({"max_tokens": 1e30}, 400, "max_tokens"),
        ({"tools": "all"}, 400, "tools"),
        ({"tools": [{"type": "file_search"}]}, 400, "tools.0.vector_store_ids"),
        ({"rag": True}, 400, "rag"),
        ({"rag": {"top_k": 5}}, 400, "rag.top_k"),
        ({"rag": {"dry_run": "yes"}}, 400, "rag.dry_run"),
        ({"rag": {"filters": {}}}, 400, "rag.filters"),
        ({"rag": {"max_num_results": 51}}, 400, "rag.max_num_results"),
        ({"rag": {"vector_store_ids": ["nope"]}}, 404, "rag.vector_store_ids"),
        ({"rag": {"vector_store_ids": ["docs", "vs_" + "0" * 32]}}, 404, "rag.vector_store_ids"),
        ({"rag": {"vector_store_ids": [""]}}, 404, "rag.vector_store_ids"),
        ({"rag": {"vector_store_ids": ["x" * 100_000]}}, 404, "rag.vector_store_ids"),
        ({"rag": {"vector_store_ids": ["a\x00b"]}}, 404, "rag.vector_store_ids"),
        (
            {"tools": [{"type": "file_search", "vector_store_ids": ["nope"]}]},
            404,
            "tools.vector_store_ids",
        ),
        ({"model": "scripted@nope"}, 404, "model"),
        ({"model": "gpt-4o-mini@nope"}, 404, "model"),
        ({"model": "scripted@twin"}, 400, "model"),
        ({"rag": {"vector_store_ids": ["twin"]}}, 400, "rag.vector_store_ids"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}],
                    }
                ]
            },
            400,
            "messages.0.content.0",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_wrong_field_is_named(
    shared: Running, fields: dict[str, Any], status: int, param: str, streamed: bool
) -> None:
    response = shared.client.post(ROUTE, json={**chat(stream=streamed), **fields})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "value", "param", "status"),
    [
        ("X-RAG", "perhaps", "X-RAG", 400),
        ("X-RAG-Top-K", "many", "X-RAG-Top-K", 400),
        ("X-RAG-Vector-Store", "nope", "X-RAG-Vector-Store", 404),
    ],
)
def test_the_wrong_header_is_named(
    shared: Running, name: str, value: str, param: str, status: int
) -> None:
    response = shared.ask(headers={name: value})
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_an_ambiguous_name_lists_the_ids(bench: Bench, shared: Running) -> None:
    stores = bench.run(bench.services.handover.current.catalog.list_stores("local"))
    ids = [store.id for store in stores if store.name == "twin"]
    error = error_of(shared.ask(model="scripted@twin"))
    assert error["code"] == "ambiguous_store"
    assert all(store_id in error["message"] for store_id in ids)
    assert shared.ask(model=f"scripted@{ids[0]}").status_code == 200


def test_an_unknown_model_lists_the_known_ones(shared: Running) -> None:
    error = error_of(shared.ask(model="llama-9"))
    assert error["code"] == "model_not_found"
    assert "scripted" in error["message"]
    for name in ("llama-9", "scripted@nope", "a/b", "%2e%2e"):
        response = shared.client.get(f"/v1/models/{name}")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/health/", 404),
        ("GET", "/docs", 404),
        ("GET", ROUTE, 405),
        ("PUT", ROUTE, 405),
        ("POST", "/health", 405),
        ("POST", "/v1/models", 405),
        ("PATCH", "/v1/embeddings", 405),
        ("POST", "/v1/responses", 400),
        ("GET", "/v1/responses/resp_1", 400),
        ("GET", "/v1/files", 400),
        ("DELETE", "/v1/files/file-1", 400),
        ("POST", "/v1/vector_stores", 400),
        ("POST", "/v1/vector_stores/vs_1/files", 400),
        ("POST", "/v1/messages", 404),
        ("POST", "/invocations", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("GET", "/v1/rag/receipts/x", 404),
    ],
)
def test_other_routes(shared: Running, method: str, path: str, status: int) -> None:
    response = shared.client.request(method, path, json={} if method == "POST" else None)
    assert response.status_code == status
    error = error_of(response)
    if status == 400:
        assert "not supported yet" in error["message"]
        assert path in error["message"]
    assert ("allow" in response.headers) == (status == 405)


# --- size -------------------------------------------------------------------------------------------


def test_a_body_of_50_mb_is_413_by_its_declared_length(shared: Running) -> None:
    """Answered before the body is sent."""
    with socket.create_connection(("127.0.0.1", shared.port), timeout=20) as sock:
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {50 * MIB}\r\n\r\n".encode())
        answer = b""
        while b"body_too_large" not in answer and (more := sock.recv(65536)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in answer


def pieces(total: int) -> Iterator[bytes]:
    yield b'{"model": "'
    for _ in range(total // MIB):
        yield b"x" * MIB
    yield b'"}'


@pytest.mark.parametrize("path", [ROUTE, "/tokenize"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_50_mb_that_is_sent_is_413(shared: Running, path: str, declared: bool) -> None:
    headers = {"content-type": "application/json"}
    if declared:
        headers["content-length"] = str(sum(map(len, pieces(50 * MIB))))
    try:
        response = shared.client.post(path, content=pieces(50 * MIB), headers=headers)
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pytest.skip("the connection was closed while the body was still being sent")
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


def test_a_body_under_the_limit_is_read(shared: Running) -> None:
    response = post(shared, json.dumps(chat("word " * 20_000)).encode())
    assert (response.status_code, error_of(response)["code"]) == (400, "context_length_exceeded")


@pytest.mark.timeout(60)
def test_a_question_of_megabytes_does_not_hang(bench: Bench) -> None:
    with bench.serve(retrieval_timeout_seconds=2) as running:
        for text in ("word " * (2 * MIB), "x" * (10 * MIB), "🙂" * MIB, "a\x00b " * MIB):
            response = running.ask(text)
            assert response.status_code in (200, 400)
        assert running.ask().json()["rag"]["status"] == "hit", "what came after is served as ever"


# --- the engine's own routes ------------------------------------------------------------------------


def test_the_open_routes_of_the_engine(shared: Running) -> None:
    assert shared.client.get("/version").json() == {"version": "scripted"}
    assert shared.client.post("/tokenize", json={"prompt": "one two"}).json()["count"] == 2
    assert shared.client.post("/tokenize", json=chat("one two")).json()["count"] == 9
    for name in ("scripted", "gpt-4o-mini", "gpt-4o-mini@docs", None):
        asked = {"prompt": "one two", "model": name}
        assert shared.client.post("/tokenize", json=asked).json()["count"] == 2
    for path in ("/tokenize", "/detokenize"):
        unknown = shared.client.post(path, json={"tokens": [1], "prompt": "x", "model": "llama-9"})
        assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    for content in (*NOT_JSON, *NO_OBJECT, b'{"prompt": 5}', b'{"messages": [5]}'):
        response = post(shared, content, path="/tokenize")
        assert 400 <= response.status_code < 500, content[:40]
        error_of(response)
    assert (
        error_of(shared.client.post("/detokenize", json={"tokens": [1]}))["type"] == "server_error"
    )


# --- anything at all --------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["user", "docs", "file_search", "<|im_end|>", "vs_" + "0" * 32, "gpt-4o@docs", "@"]
    ),
)
ANY = st.recursive(
    JUNK,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
VALID = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How long is a loan?"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ],
    "stream": False,
    "stream_options": {"include_usage": True},
    "n": 1,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "cache_salt": "mine",
    "tools": [
        {"type": "function", "function": {"name": "f"}},
        {"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2,
         "ranking_options": {"score_threshold": 0.1}},
    ],
    "tool_choice": "auto",
    "rag": {"enabled": True, "vector_store_ids": ["docs"], "max_context_tokens": 500, "on_empty": "refuse",
            "footer": True},
}  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from paths(inner, (*path, key))


PATHS = list(paths(VALID))
DROP = object()


def mutated(path: tuple[Any, ...], value: Any) -> Any:
    body = json.loads(json.dumps(VALID))
    if not path:
        return {} if value is DROP else value
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    if value is DROP:
        holder.pop(path[-1])
    else:
        holder[path[-1]] = value
    return body


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), value=st.one_of(st.just(DROP), ANY), streamed=st.booleans())
def test_no_mutation_of_a_request_is_a_500(
    shared: Running, path: Any, value: Any, streamed: bool
) -> None:
    body = mutated(path, value)
    if streamed and isinstance(body, dict):
        body.setdefault("stream", True)
        body["stream"] = body["stream"] if path[:1] == ("stream",) else True
    if isinstance(body, dict) and isinstance(body.get("n"), int) and body["n"] > 50:
        body["n"] = 50  # a number that is allowed and large is the engine's to limit
    response = shared.client.post(ROUTE, json=body)
    if response.status_code == 200:
        assert b'data: {"error"' not in response.content
    else:
        assert response.status_code in (400, 404), response.text
        error_of(response)

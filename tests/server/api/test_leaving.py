"""A client that goes away frees the engine within a second, wherever its request stands."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import pytest

from retrieval.embed.base import Vectors
from retrieval.types import Hit
from server.engine.scripted import Script
from tests.server.api.bench import ROUTE, Bench, Running, chat, eventually

PATIENCE_SECONDS = 1.0
#: Nothing of these scripts ends within a test.
PREFILL = Script(prefill_seconds=600, answer="never")
DECODE = Script(token_seconds=0.01, answer="word " * 100_000, max_model_len=10**7)


class Silent:
    """A vector store that never answers."""

    def __init__(self) -> None:
        self.asked = False

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        self.asked = True
        await anyio.sleep_forever()
        raise AssertionError


def request(running: Running, **fields: Any) -> AbstractContextManager[socket.socket]:
    """A chat request on its way, over a connection that is cut at the end."""
    return send(running, ROUTE, chat(**fields))


@contextmanager
def send(running: Running, path: str, payload: dict[str, Any]) -> Iterator[socket.socket]:
    """Any request on its way, over a connection that is cut at the end."""
    body = json.dumps(payload).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as sock:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield sock


def read_until(sock: socket.socket, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        more = sock.recv(65536)
        assert more, seen
        seen += more
    return seen


def check_freed(running: Running, grounded: str, *, engine: bool) -> None:
    """All is as before the request, and what happened is counted."""
    start = time.monotonic()
    eventually(lambda: running.in_flight == 0, PATIENCE_SECONDS)
    assert time.monotonic() - start < PATIENCE_SECONDS
    assert len(running.engine.seen.aborted) == (1 if engine else 0)
    assert running.metric("requests_aborted_total", route=ROUTE) == 1
    labels = {"route": ROUTE, "outcome": "cancelled", "grounded": grounded}
    assert running.metric("request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_before_retrieval_ends(bench: Bench, streamed: bool) -> None:
    silent = Silent()
    with bench.serve(dense=silent) as running:
        with request(running, stream=streamed):
            eventually(lambda: silent.asked)
            assert running.in_flight == 1
        check_freed(running, "false", engine=False)
        assert not running.engine.seen.bodies
        assert (
            running.metric("stage_duration_seconds_count", stage="search", outcome="cancelled") == 1
        )


@pytest.mark.parametrize("model", ["scripted", "scripted@none"])
@pytest.mark.parametrize("streamed", [False, True])
def test_in_prefill(bench: Bench, streamed: bool, model: str) -> None:
    grounded = str(model == "scripted").lower()
    with bench.serve(PREFILL) as running:
        with request(running, stream=streamed, model=model) as sock:
            eventually(lambda: bool(running.engine.seen.bodies))
            if streamed:
                read_until(sock, b'"rag"' if grounded == "true" else b"\r\n\r\n")
        check_freed(running, grounded, engine=True)
        assert (
            running.metric("stage_duration_seconds_count", stage="prefill", outcome="cancelled")
            == 1
        )


@pytest.mark.parametrize("model", ["scripted", "scripted@none"])
def test_midstream(bench: Bench, model: str) -> None:
    grounded = str(model == "scripted").lower()
    with bench.serve(DECODE) as running:
        with request(running, stream=True, model=model) as sock:
            read_until(sock, b"word")
        check_freed(running, grounded, engine=True)
        assert (
            running.metric("stage_duration_seconds_count", stage="decode", outcome="cancelled") == 1
        )
        assert running.metric("time_to_first_token_seconds_count", grounded=grounded) == 1


def test_a_reader_that_stops_reading_and_then_leaves(bench: Bench) -> None:
    """The stream waits for a full socket when its client goes."""
    flood = Script(answer="word" * 200 + " " + ("word" * 200 + " ") * 20_000, max_model_len=10**7)
    with bench.serve(flood) as running:
        with request(running, stream=True) as sock:
            read_until(sock, b"word")
            eventually(lambda: running.in_flight == 1)
        check_freed(running, "true", engine=True)


def test_half_a_request_is_no_request(bench: Bench) -> None:
    with bench.serve() as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as sock:
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b'{"model": ')
            eventually(lambda: running.in_flight == 1)
        eventually(lambda: running.in_flight == 0, PATIENCE_SECONDS)
        assert running.metric("requests_aborted_total", route=ROUTE) == 1
        assert not running.engine.seen.bodies


def test_the_place_is_free_again(bench: Bench) -> None:
    with bench.serve(DECODE, max_running=1) as running:
        for _ in range(3):
            with request(running, stream=True) as sock:
                read_until(sock, b"word")
            eventually(lambda: running.in_flight == 0, PATIENCE_SECONDS)
        assert len(running.engine.seen.aborted) == 3

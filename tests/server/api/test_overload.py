"""More requests than places, over HTTP: who waits, who is sent away, and what a deadline does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.server.api.bench import ROUTE, Bench, chat, eventually
from tests.server.api.test_bad_input import error_of
from tests.server.api.test_chat import payloads
from tests.server.api.test_leaving import DECODE, PATIENCE_SECONDS, PREFILL, read_until, request


def test_who_waits_is_answered_when_a_place_is_free(bench: Bench) -> None:
    with bench.serve(DECODE, max_running=1, max_queued=1) as running, ThreadPoolExecutor(1) as pool:
        with request(running, stream=True) as first:
            read_until(first, b"word")
            waiting = pool.submit(running.ask, max_tokens=1)
            eventually(lambda: running.metric("admission_queue_length") == 1)
            refused = running.ask()
            assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"]
            assert len(running.engine.seen.bodies) == 1
        assert waiting.result(60).status_code == 200
        eventually(lambda: running.in_flight == 0)
        assert running.metric("admission_queue_length") == 0


def test_who_leaves_while_waiting_frees_the_place(bench: Bench) -> None:
    with bench.serve(DECODE, max_running=1, max_queued=1) as running:
        with request(running, stream=True) as first:
            read_until(first, b"word")
            with request(running, stream=True):
                eventually(lambda: running.metric("admission_queue_length") == 1)
            eventually(lambda: running.metric("admission_queue_length") == 0, PATIENCE_SECONDS)
            eventually(lambda: running.metric("requests_aborted_total", route=ROUTE) == 1)
        eventually(lambda: running.in_flight == 0, PATIENCE_SECONDS)
        assert len(running.engine.seen.bodies) == 1


def test_a_key_over_its_own_limit_is_429(bench: Bench) -> None:
    with (
        bench.serve(
            DECODE, key="one", api_keys=["one", "two"], max_concurrent_per_key=1
        ) as running,
        running.client.stream("POST", ROUTE, json=chat(stream=True)) as first,
    ):
        chunks = first.iter_raw()  # dropped, it would end the stream
        next(chunks)
        refused = running.ask()
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
        assert error_of(refused)["type"] == "rate_limit_error"
        assert refused.headers["retry-after"]
        other = running.ask(headers={"authorization": "Bearer two"}, max_tokens=1)
        assert other.status_code == 200


def test_past_the_deadline_is_504_and_frees_the_place(bench: Bench) -> None:
    with bench.serve(PREFILL, request_timeout_seconds=0.2) as running:
        late = running.ask()
        assert (late.status_code, error_of(late)["code"]) == (504, "request_timeout")
        eventually(lambda: running.in_flight == 0)
        assert len(running.engine.seen.aborted) == 1


def test_a_stream_past_the_deadline_ends_with_an_error(bench: Bench) -> None:
    with bench.serve(DECODE, request_timeout_seconds=0.5) as running:
        text = running.ask(stream=True).text
        assert text.endswith("\n\n")
        assert "[DONE]" not in text
        assert payloads(text)[-1]["error"]["code"] == "request_timeout"
        eventually(lambda: running.in_flight == 0)
        assert len(running.engine.seen.aborted) == 1

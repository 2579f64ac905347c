"""Answers that are repeated: which requests get one, and how it looks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engine.scripted import Script
from tests.server.api.bench import (
    ROUTE,
    Bench,
    Running,
    chat,
    eventually,
    ingest_by_command,
    write_documents,
)

SAME = {"temperature": 0}
SLOW = Script(answer="one two three four", token_seconds=0.05)


@pytest.fixture
def remembering(bench: Bench) -> Iterator[Running]:
    with bench.serve(answer_cache_entries=10) as running:
        yield running


def asked(running: Running) -> int:
    return len(running.engine.seen.bodies)


def stream(running: Running, **fields: Any) -> tuple[dict[str, str], list[dict[str, Any]]]:
    body = chat(stream=True, **fields)
    with running.client.stream("POST", ROUTE, json=body) as response:
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return dict(response.headers), [json.loads(event[6:]) for event in events[:-2]]


@pytest.mark.parametrize("rag", [{}, {"enabled": False}])
def test_a_whole_answer_is_repeated_under_a_new_id(remembering: Running, rag: Any) -> None:
    first, again = remembering.ask(rag=rag, **SAME), remembering.ask(rag=rag, user="u", **SAME)
    assert asked(remembering) == 1
    assert again.headers["x-rag-cached"] == "answer"
    assert "x-rag-cached" not in first.headers
    one, two = first.json(), again.json()
    assert one["id"] != two["id"]
    assert one["choices"] == two["choices"]
    assert one["usage"] == two["usage"]
    if not rag:
        assert two["rag"]["cached"] == ["answer"]
        assert not {"prefill", "decode"} & set(two["rag"]["timings_ms"])
    counts = [
        remembering.metric("cache_requests_total", cache="answer", result=result)
        for result in ("hit", "miss")
    ]
    assert counts == [1, 1]


@pytest.mark.parametrize("rag", [{}, {"enabled": False}])
def test_a_stream_is_repeated_event_by_event(remembering: Running, rag: Any) -> None:
    options = {"include_usage": True}
    _, first = stream(remembering, rag=rag, stream_options=options, **SAME)
    headers, again = stream(remembering, rag=rag, stream_options=options, **SAME)
    assert asked(remembering) == 1
    assert headers["x-rag-cached"] == "answer"
    (old,), (new,) = {event["id"] for event in first}, {event["id"] for event in again}
    assert old != new
    assert [event["choices"] for event in first] == [event["choices"] for event in again]
    assert again[-1]["usage"] == first[-1]["usage"]
    if not rag:
        assert again[0]["rag"]["cached"] == ["answer"]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"temperature": 0.1},
        {"temperature": 0, "max_tokens": 3},
        {"temperature": 0, "rag": {"max_num_results": 1}},
        {"temperature": 0, "cache_salt": "mine"},
    ],
)
def test_what_differs_is_asked(remembering: Running, other: dict[str, Any]) -> None:
    remembering.ask(**SAME)
    for _ in range(1 if other else 2):
        assert "x-rag-cached" not in remembering.ask(**other).headers
    assert asked(remembering) == (2 if other else 3)


def test_it_is_off_by_default(served: Running) -> None:
    served.ask(**SAME)
    assert "x-rag-cached" not in served.ask(**SAME).headers
    assert asked(served) == 2


def test_an_answer_that_broke_off_is_not_repeated(bench: Bench) -> None:
    with bench.serve(
        Script(answer="a b c d e", fail="midstream"), answer_cache_entries=10
    ) as broken:
        for _ in range(2):
            with broken.client.stream("POST", ROUTE, json=chat(stream=True, **SAME)) as response:
                assert b'"error"' in response.read()
        assert asked(broken) == 2


def test_an_answer_that_nobody_heard_to_its_end_is_not_repeated(bench: Bench) -> None:
    with bench.serve(SLOW, answer_cache_entries=10) as slow:
        with slow.client.stream("POST", ROUTE, json=chat(stream=True, **SAME)) as response:
            next(response.iter_bytes())
        eventually(lambda: len(slow.engine.seen.aborted) == 1)
        headers, _ = stream(slow, **SAME)
        assert "x-rag-cached" not in headers
        assert asked(slow) == 2


def test_new_sources_are_a_new_answer(remembering: Running, bench: Bench, tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "one", {"okapi.md": "The okapi sleeps by day.\n"})
    question, rag = "When does the okapi sleep?", {"vector_store_ids": ["okapis"]}
    for text in ("by day", "by night"):
        (folder / "okapi.md").write_text(f"The okapi sleeps {text}.\n")
        ingest_by_command(bench.settings.data_dir, folder, "okapis")
        headers = [
            remembering.ask(question, rag=rag, **SAME).headers.get("x-rag-cached", "")
            for _ in range(2)
        ]
        assert headers == ["", "answer"]
        assert text in remembering.prompt

"""Conversations: sources of earlier turns stay where they were, so that the prompt only grows at its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engine.scripted import Script
from tests.server.api.bench import (
    QUESTION,
    ROUTE,
    Bench,
    Running,
    ingest_by_command,
    write_documents,
)

TEA = "How is Morva tea steeped?"
ONE_SOURCE = {"max_num_results": 1}


@pytest.fixture
def sticky(bench: Bench) -> Iterator[Running]:
    with bench.serve(sticky=True) as running:
        yield running


def turn(*texts: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def ask(running: Running, *texts: str, **rag: Any) -> tuple[dict[str, Any], list[str]]:
    """The answer's `rag`, and what the engine got of each message."""
    body = {"model": "gpt-4o-mini", "messages": turn(*texts), "rag": {**ONE_SOURCE, **rag}}
    response = running.client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    messages = running.engine.seen.bodies[-1]["messages"]
    return response.json(), [message["content"] for message in messages]


def shown(answer: dict[str, Any]) -> list[tuple[int, str]]:
    (page,) = answer["rag"]["search_results"]
    return [(row["number"], row["filename"]) for row in page["data"]]


def test_the_prompt_of_a_turn_begins_with_the_prompt_of_the_turn_before(sticky: Running) -> None:
    first, sent = ask(sticky, QUESTION)
    assert shown(first) == [(1, "handbook.md")]
    second, then = ask(sticky, QUESTION, "Thirty.", TEA)
    assert then[0] == sent[0]
    assert shown(second) == [(2, "tea.txt")]
    assert '<source id="2" name="tea.txt">' in then[2]
    assert "thirty days" not in then[2]
    assert second["rag"]["cached"] == ["conversation"]
    third, last = ask(sticky, QUESTION, "Thirty.", TEA, "Cold.", "And how many days was it?")
    assert last[:3] == then
    assert shown(third)[0][0] in (1, 2, 3)


def test_what_the_prompt_holds_is_not_said_twice_and_still_cited(sticky: Running) -> None:
    ask(sticky, QUESTION)
    answer, sent = ask(sticky, QUESTION, "Thirty.", QUESTION)
    assert shown(answer) == [(1, "handbook.md")]
    assert sent[2] == QUESTION
    assert answer["rag"]["status"] == "hit"
    annotations = answer["choices"][0]["message"]["annotations"]
    assert {a["url_citation"]["title"] for a in annotations} == {"handbook.md"}


def test_a_question_that_finds_nothing_leaves_the_earlier_sources(sticky: Running) -> None:
    _, first = ask(sticky, QUESTION)
    answer, sent = ask(
        sticky, QUESTION, "Thirty.", "Xyzzy?", ranking_options={"score_threshold": 1}
    )
    assert answer["rag"]["status"] == "miss"
    assert shown(answer) == []
    assert sent == [*first, "Thirty.", "Xyzzy?"]
    # The answer cites [1], which the first turn brought.
    annotations = answer["choices"][0]["message"]["annotations"]
    assert {a["url_citation"]["title"] for a in annotations} == {"handbook.md"}


@pytest.mark.parametrize("by", ["request", "settings"])
def test_switched_off_earlier_turns_stay_as_the_client_sent_them(bench: Bench, by: str) -> None:
    with bench.serve(sticky=by == "request") as running:
        ask(running, QUESTION)
        off = {"sticky": False} if by == "request" else {}
        answer, sent = ask(running, QUESTION, "Thirty.", TEA, **off)
        assert sent[0] == QUESTION
        assert shown(answer) == [(1, "tea.txt")]


def test_earlier_sources_make_way_for_the_questions_own(bench: Bench) -> None:
    with bench.serve(sticky=True, answer_reserve_tokens=10) as running:
        _, first = ask(running, QUESTION)
        (tokens,) = running.engine.count_text(first[:1])
        for room, kept in ((2 * tokens + 50, True), (tokens + tokens // 2 + 40, False)):
            running.engine.script = Script(max_model_len=room)
            answer, sent = ask(running, QUESTION, "Thirty.", TEA)
            assert (sent[0] == first[0]) is kept
            assert (sent[0] == QUESTION) is not kept
            assert [name for _, name in shown(answer)] == ["tea.txt"]
            assert ("cached" in answer["rag"]) is kept


def test_more_than_the_setting_allows_is_let_go(bench: Bench) -> None:
    with bench.serve(sticky=True, sticky_context_tokens=5) as running:
        ask(running, QUESTION)
        answer, sent = ask(running, QUESTION, "Thirty.", TEA)
        assert sent[0] == QUESTION
        assert shown(answer) == [(1, "tea.txt")]


def test_a_store_that_changed_leaves_no_earlier_sources(
    sticky: Running, bench: Bench, tmp_path: Path
) -> None:
    folder = write_documents(tmp_path / "one", {"quagga.md": "The quagga eats hay.\n"})
    ingest_by_command(bench.settings.data_dir, folder, "sticky-news")
    store = {"vector_store_ids": ["sticky-news"]}
    question = "What does the quagga eat?"
    _, first = ask(sticky, question, **store)
    assert "eats hay" in first[0]
    (folder / "quagga.md").write_text("The quagga eats rice.\n")
    ingest_by_command(bench.settings.data_dir, folder, "sticky-news")
    _, sent = ask(sticky, question, "Hay.", "Is that so of the quagga?", **store)
    assert sent[0] == question
    assert "eats rice" in sent[2]


def test_the_same_set_of_sources_is_the_same_block(sticky: Running) -> None:
    def block(question: str) -> str:
        _, sent = ask(sticky, question, max_num_results=4)
        return sent[0].removesuffix(question)

    loans, tea = block(QUESTION), block(TEA)
    assert loans == tea
    names = re.findall(r'name="([^"]+)"', loans)
    assert names == sorted(names)
    assert len(names) == 4

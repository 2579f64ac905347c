"""What the scenarios make of what they saw, and that a timed question is new to every cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import parse
from bench.callers import Endpoint, header, request_bytes, stages
from bench.corpus import question, twin, write_corpus
from bench.lab import Lab, alternate
from bench.scenarios import conversation, grounded, off, overload, start
from bench.servers import Server

SEEN: dict[str, Any] = {
    "rate": 40.0, "quiet_ttft_seconds": 0.2, "accepted": 50, "accepted_ttft_p99_seconds": 1.9,
    "refused": 150, "refused_p50_seconds": 0.004, "refused_p99_seconds": 0.06, "broken": 0,
    "resident_growth": 1.01, "recovery_seconds": None, "gauges": {"requests_in_flight": 0.0},
}  # fmt: skip


def verdicts(**changes: Any) -> dict[str, str | None]:
    found = overload.figures({**SEEN, **changes}, capacity=10, bound=2)
    return {figure.name: figure.as_json()["verdict"] for figure in found}


def test_an_overload_is_judged_by_its_quiet_time_and_the_queue() -> None:
    assert verdicts()["accepted, TTFT, 99th percentile"] == "met"
    late = verdicts(accepted_ttft_p99_seconds=2.4)
    assert late["accepted, TTFT, 99th percentile"] == "not met"


def test_slow_refusals_and_no_recovery_are_not_met() -> None:
    found = verdicts()
    assert found["refused, 99th percentile"] == "not met"
    assert found["recovery (60: never)"] == "not met"
    assert verdicts(recovery_seconds=0.0)["recovery (60: never)"] == "met"


def test_a_run_without_refusals_was_no_overload() -> None:
    with pytest.raises(RuntimeError, match="no overload"):
        verdicts(refused=0)


async def rounds_of(warm: bool) -> list[tuple[str, int]]:
    asked: list[tuple[str, int]] = []

    async def one(name: str, number: int) -> int:
        asked.append((name, number))
        return number

    kept = await alternate(("a", "b"), 2, one, warm=warm)
    assert kept == {"a": [1, 2], "b": [1, 2]}
    return asked


@pytest.mark.parametrize("warm", [True, False])
def test_sides_take_turns_at_being_first(warm: bool) -> None:
    import asyncio

    asked = asyncio.run(rounds_of(warm))
    measured = [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert asked == ([("b", 0), ("a", 0)] if warm else []) + measured


def test_a_twin_is_another_text_of_the_same_words() -> None:
    assert twin(question(7)) != question(7)
    assert twin(question(7)).lower() == question(7).lower()


def test_questions_differ() -> None:
    assert len({question(number) for number in range(500)}) == 500


def test_the_sixth_turn_holds_the_five_before_it() -> None:
    each = conversation.turns(3)
    assert [len(messages) for messages in each] == [2, 4, 6, 8, 10, 12]
    assert each[5][: len(each[4])] == each[4]
    assert each[5][-1]["role"] == "user"


def test_a_named_contender_gets_openai_s_fields_only(tmp_path: Path) -> None:
    options = ["--vs", "other=http://127.0.0.1:1/v1/", "--vs-model", "other=a-model"]
    lab = Lab(parse(options), tmp_path)
    (other,) = off.others(lab)
    assert other == Server("other", "http://127.0.0.1:1", "a-model")
    assert set(off.request_for(lab, other)) == {"model", "messages", "max_tokens"}
    mine = off.request_for(lab, Server("Groundwire", "http://127.0.0.1:2", "chat", pid=1))
    assert mine["rag"] == {"enabled": False}


def test_the_prompt_is_read_from_the_engine_s_own_text() -> None:
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSources.\n\nWhy?<|im_end|>\n"
    assert grounded.user_message({"prompt_text": text}) == "Sources.\n\nWhy?"


def test_the_caller_reads_what_the_server_says() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nServer-Timing: embed;dur=1.5, search;dur=2\r\n"
    )
    assert header(head, b"content-length") == b"12"
    assert stages(header(head, b"server-timing")) == {"embed": 1.5, "search": 2.0}
    assert stages(b"") == {}
    sent = request_bytes(Endpoint("h", 1, "/p"), b"{}")
    assert sent.startswith(b"POST /p HTTP/1.1\r\nHost: h:1\r\n")
    assert sent.endswith(b"Content-Length: 2\r\n\r\n{}")


def test_each_section_of_the_corpus_is_one_chunk(tmp_path: Path) -> None:
    from retrieval.ingest.chunk import chunk
    from retrieval.ingest.load import load

    write_corpus(tmp_path / "corpus", 20)
    (file,) = (tmp_path / "corpus").iterdir()
    document = load(file.name, file.read_bytes(), max_bytes=2**20)
    # Words and marks: somewhat fewer than the tokens of a real tokenizer.
    cut = chunk(
        document, count_tokens=lambda text: len(text.split()), max_tokens=200, overlap_tokens=0
    )
    assert len(cut) == 20


PAGE = """# TYPE groundwire_start_step_begin_seconds gauge
groundwire_start_step_begin_seconds{step="engine"} 2.0
groundwire_start_step_begin_seconds{step="chroma"} 3.0
groundwire_start_step_duration_seconds{step="engine"} 30.0
groundwire_start_step_duration_seconds{step="chroma"} 1.5e+00
groundwire_start_duration_seconds 32.0
"""


def test_a_start_is_compared_and_told_by_step() -> None:
    steps = start.steps(PAGE)
    assert steps == {"engine": start.Step(2.0, 30.0), "chroma": start.Step(3.0, 1.5)}
    ours = [start.Started(33.0, 0.5, steps), start.Started(33.5, 0.5, steps)]
    bare = [start.Started(30.0), start.Started(30.5)]
    compared, grounded, *told = start.figures(ours, bare)
    assert compared.estimate.value == pytest.approx(1.1, abs=0.01)
    assert compared.as_json()["verdict"] == "not met"
    assert grounded.rounds["Groundwire"] == [0.5, 0.5]
    assert [figure.name for figure in told] == ["of that engine", "of that chroma"]


def test_a_step_that_a_round_did_without_is_not_told() -> None:
    ours = [start.Started(33.0, 0.5, start.steps(PAGE)), start.Started(33.5, 0.5)]
    assert len(start.figures(ours, [start.Started(30.0)] * 2)) == 2

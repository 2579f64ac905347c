"""`groundwire eval` with the bundled embedder and a Chroma of its own, on a data set small enough to read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from server.cli import eval as evaluate
from server.evaluation import EvaluationError, read_data_set
from server.queries import FollowUpWeights
from server.settings import Settings

CORPUS: list[dict[str, Any]] = [
    {"id": "a/1", "title": "Zebras", "text": "The quagga was a zebra of the Cape of Good Hope."},
    {"id": "b 2", "title": "Tea", "text": "Green tea is steeped at eighty degrees."},
    {"id": "c", "title": "", "text": "A zebra crossing has stripes."},
]
TURNS = [
    {"role": "user", "content": "How do I make green tea?"},
    {"role": "assistant", "content": "Green tea is steeped, not boiled."},
    {"role": "user", "content": "And how hot?"},
]
QUERIES: list[dict[str, Any]] = [
    {"id": "q1", "text": "Which zebra lived at the Cape?", "positive_ids": ["a/1"]},
    {"id": "q2", "messages": TURNS, "text": "And how hot?", "positive_ids": ["b 2"]},
]


def write(directory: Path, name: str, rows: list[Any]) -> None:
    (directory / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "corpus.jsonl", CORPUS)
    write(tmp_path, "queries.jsonl", QUERIES)
    return tmp_path


def run(data: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    return evaluate.run(parser.parse_args(["eval", str(data), *flags]), Settings())


def test_one_json_object(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results) == ["dense", "lexical", "hybrid"]
    hybrid = results["hybrid"]
    assert set(hybrid) == {
        "recall@1", "recall@4", "recall@10", "ndcg@10", "mrr@10", "interval_95",
    }  # fmt: skip
    assert hybrid["recall@1"] == 1.0
    assert hybrid["interval_95"]["recall@1"] == [1.0, 1.0]
    # The follow-up alone has no word of its passage.
    assert results["lexical"]["recall@1"] == 1.0


def test_questions_in_a_conversation(data: Path) -> None:
    read = read_data_set(data, FollowUpWeights())
    assert [question.text for question in read.questions] == [QUERIES[0]["text"], "And how hot?"]
    assert [len(question.also) for question in read.questions] == [0, 1]
    assert [question.also for question in read_data_set(data, FollowUpWeights(0, 0)).questions] == [
        (),
        (),
    ]


@pytest.mark.parametrize(
    ("name", "rows", "complaint"),
    [
        ("corpus.jsonl", [CORPUS[0], [1]], "corpus.jsonl, line 2: must be a JSON object"),
        ("corpus.jsonl", [{"id": "x"}], "corpus.jsonl, line 1: text must be a string"),
        ("corpus.jsonl", [CORPUS[0]] * 2, "corpus.jsonl, line 2: the id 'a/1' is there twice"),
        ("corpus.jsonl", [], "corpus.jsonl: holds no rows"),
        ("queries.jsonl", [{"text": "x"}], "queries.jsonl, line 1: positive_ids must be"),
        ("queries.jsonl", [{"text": "x", "positive_ids": ["no"]}], "line 1: .* 'no', not in the corpus"),
        ("queries.jsonl", [{"messages": 1, "positive_ids": ["c"]}], "line 1: messages must be a list"),
        ("queries.jsonl", [{"messages": [{}], "positive_ids": ["c"]}], "line 1: messages: role"),
        ("queries.jsonl", [{"messages": [], "positive_ids": ["c"]}], "line 1: messages hold no user"),
    ],
)  # fmt: skip
def test_bad_input_names_file_and_line(
    data: Path, name: str, rows: list[Any], complaint: str
) -> None:
    write(data, name, rows)
    with pytest.raises(EvaluationError, match=complaint):
        read_data_set(data, FollowUpWeights())


def test_a_line_that_is_no_json(data: Path) -> None:
    (data / "queries.jsonl").write_text('{"id": "q"\n')
    with pytest.raises(EvaluationError, match=r"queries.jsonl, line 1: not JSON"):
        read_data_set(data, FollowUpWeights())


def test_a_missing_file_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 1
    assert "corpus.jsonl: No such file or directory" in capsys.readouterr().err

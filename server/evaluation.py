"""The use case behind `groundwire eval`: a folder of passages and questions, and how well they are found.

The rows of `corpus.jsonl` are passages as they stand: what is measured is the search, not the chunking.
They go through the write path and the retriever that the server uses, in a data directory of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retrieval.embed import QueryBatcher
from retrieval.embed.base import Embedder
from retrieval.ingest.index import IndexedFile, IndexWriter
from retrieval.lexical import LexicalIndex, LexicalWriter
from retrieval.pipeline import FusionSettings, RerankSettings, Retriever
from retrieval.quality import DEPTH, Estimate, score, summarize
from retrieval.rerank import Reranker
from retrieval.search import VectorStore, connect
from retrieval.trace import Trace
from retrieval.types import Passage, Query, WeightedText
from server.queries import FollowUpWeights, in_context, question_index, text_of
from server.wire.chat import Message
from server.wire.common import first_complaint

STORE = "evaluation"
Progress = Callable[[str, int, int], None]


class EvaluationError(Exception):
    """A data set cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query of a data set: what is searched for, and the ids of the passages that answer it."""

    text: str
    also: tuple[WeightedText, ...]
    positives: frozenset[str]


@dataclass(frozen=True, slots=True)
class DataSet:
    """`passages` by the id that the questions' positives name."""

    passages: Mapping[str, Passage]
    questions: tuple[Question, ...]


def read_data_set(directory: Path, followup: FollowUpWeights) -> DataSet:
    """Read `corpus.jsonl` and `queries.jsonl`. Raises EvaluationError naming file and line."""
    passages: dict[str, Passage] = {}
    for where, row in _rows(directory / "corpus.jsonl"):
        id_ = _string(where, row, "id")
        if id_ in passages:
            raise EvaluationError(f"{where}: the id {id_!r} is there twice")
        passages[id_] = _passage(len(passages), _string(where, row, "text"), row.get("title"))
    questions = []
    for where, row in _rows(directory / "queries.jsonl"):
        question = _question(where, row, followup)
        if unknown := sorted(question.positives - passages.keys()):
            raise EvaluationError(f"{where}: positive_ids names {unknown[0]!r}, not in the corpus")
        questions.append(question)
    return DataSet(passages, tuple(questions))


async def evaluate(
    data: DataSet,
    embedder: Embedder,
    fusion: FusionSettings,
    data_dir: Path,
    reranker: Reranker | None = None,
    rerank_candidates: int = 20,
    progress: Progress = lambda _step, _done, _total: None,
) -> dict[str, dict[str, Estimate]]:
    """Index the passages below `data_dir`, which must be empty, and ask every question in each way.

    `hybrid` is what a chat request gets; `dense` and `lexical` are the same with the other ranking's weight
    at 0. `reranked` is there with a `reranker`, which gets the time it needs. Raises RetrievalError.
    """
    ways = {
        "dense": replace(fusion, dense_weight=1.0, lexical_weight=0.0),
        "lexical": replace(fusion, dense_weight=0.0, lexical_weight=1.0),
        "hybrid": fusion,
    }
    if reranker is not None:
        ways["reranked"] = fusion
    ids = {passage.id: id_ for id_, passage in data.passages.items()}
    async with AsyncExitStack() as stack:
        chroma = await stack.enter_async_context(connect(data_dir))
        await _index(data, embedder, chroma.store, data_dir / "lexical", progress)
        batcher = QueryBatcher(embedder)
        stack.push_async_callback(batcher.close)
        lexical = LexicalIndex(data_dir / "lexical")
        results = {}
        for way, settings in ways.items():
            retriever = Retriever(
                batcher,
                chroma.store,
                lexical,
                settings,
                reranker if way == "reranked" else None,
                RerankSettings(rerank_candidates, timeout_seconds=None),
            )
            scores = []
            for done, question in enumerate(data.questions, start=1):
                ranked = await _ask(retriever, question)
                scores.append(score([ids[passage] for passage in ranked], question.positives))
                progress(way, done, len(data.questions))
            results[way] = summarize(scores)
    return results


async def _ask(retriever: Retriever, question: Question) -> list[str]:
    query = Query(question.text, (STORE,), DEPTH, question.also)
    found = await retriever.retrieve(query, Trace())
    return [candidate.passage.id for candidate in found.candidates[:DEPTH]]


async def _index(
    data: DataSet, embedder: Embedder, vectors: VectorStore, root: Path, progress: Progress
) -> None:
    done = 0

    def embedded(count: int) -> None:
        nonlocal done
        done += count
        progress("embedding", done, len(data.passages))

    with LexicalWriter(root, STORE) as lexical:
        writer = IndexWriter(STORE, embedder, vectors, lexical)
        files = [
            IndexedFile(passage.file_id, passage.content_hash, (passage,))
            for passage in data.passages.values()
        ]
        await writer.write(files, embedded)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file with the words that name their place; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 ({error})") from error
    found = False
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: must be a JSON object")
        found = True
        yield where, row
    if not found:
        raise EvaluationError(f"{path}: holds no rows")


def _string(where: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise EvaluationError(f"{where}: {field} must be a string that is not empty")
    return value


def _passage(number: int, text: str, title: object) -> Passage:
    """A row as a file of one chunk, numbered because ids of data sets may hold what ours may not."""
    digest = sha256(text.encode("utf-8", "replace")).hexdigest()
    return Passage(f"row-{number}", digest, 0, "", text, title if isinstance(title, str) else "")


def _question(where: str, row: Mapping[str, Any], followup: FollowUpWeights) -> Question:
    positives = row.get("positive_ids")
    if not isinstance(positives, list) or not positives or not all(map(_is_text, positives)):
        raise EvaluationError(f"{where}: positive_ids must be a list of ids that is not empty")
    if row.get("messages") is None:
        return Question(_string(where, row, "text"), (), frozenset(positives))
    messages = _messages(where, row["messages"])
    index = question_index(messages)
    text = text_of(messages[index].content) if index is not None else ""
    if not text:
        raise EvaluationError(f"{where}: messages hold no user message with text")
    return Question(text, in_context(messages, index, followup), frozenset(positives))


def _messages(where: str, rows: object) -> list[Message]:
    if not isinstance(rows, list):
        raise EvaluationError(f"{where}: messages must be a list")
    try:
        return [Message.model_validate(row) for row in rows]
    except ValidationError as error:
        message, _ = first_complaint(error)
        raise EvaluationError(f"{where}: messages: {message}") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)

"""The data sets, and those that are made from them by rule: with headings, and with questions of one word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from retrieval.types import Passage
from server.evaluation import DataSet, Question, read_data_set
from server.queries import FollowUpWeights

NAMES = ("xquad_en_wiki", "chunking_eval", "followups")
#: A heading of the wiki texts alone in its line: `= Title =`, `= = Section = =`.
_HEADING = re.compile(r"^\s*((?:= )+)([^=;]+?)((?: =)+)\s*$", re.MULTILINE)
#: Long enough to be a name, and none that a stemmer's or tokenizer's rule for digits touches.
_WORD = re.compile(r"[^\W\d_]{5,}")
_WIKI = "wikitexts"


def read_sets(folder: Path) -> dict[str, DataSet]:
    """The three sets below `folder`. Raises EvaluationError naming file and line."""
    return {name: read_data_set(folder / name, FollowUpWeights()) for name in NAMES}


def titles_as_headings(data: DataSet) -> DataSet:
    """Each passage below its article's title, as if the whole were one file with a heading an article."""
    return _changed(
        data, (replace(p, title="", headings=(p.title,)) for p in data.passages.values())
    )


def wiki_headings(data: DataSet) -> DataSet:
    """The wiki texts below the headings that their lines show; asked is only what they answer.

    A passage's path is the one in force where it starts, as chunking gives it; headings within it stay in
    its text. The other passages stay as they are and can be found by mistake.
    """
    positives = {id_ for id_, passage in data.passages.items() if passage.title == _WIKI}
    questions = tuple(q for q in data.questions if q.positives <= positives)
    return _changed(replace(data, questions=questions), _with_paths(data.passages.values()))


def rare_words(data: DataSet, count: int = 300) -> DataSet:
    """The same passages, asked for by a word that only one of them has, as names and error codes are looked up.

    `count` of these words, at even steps of their alphabet.
    """
    owners: dict[str, set[str]] = {}
    for id_, passage in data.passages.items():
        for word in _WORD.findall(f"{passage.title} {passage.text}"):
            owners.setdefault(word.lower(), set()).add(id_)
    rare = sorted(word for word, ids in owners.items() if len(ids) == 1)
    chosen = rare[:: max(1, len(rare) // count)][:count]
    questions = tuple(Question(word, (), frozenset(owners[word])) for word in chosen)
    return replace(data, questions=questions)


def _changed(data: DataSet, passages: Iterable[Passage]) -> DataSet:
    return replace(data, passages=dict(zip(data.passages, passages, strict=True)))


def _with_paths(passages: Iterable[Passage]) -> Iterator[Passage]:
    path: tuple[str, ...] = ()
    for passage in passages:
        if passage.title != _WIKI:
            yield passage
            continue
        found = list(_HEADING.finditer(passage.text))
        if found and not passage.text[: found[0].start()].strip():
            path = _below(path, found.pop(0))
        yield replace(passage, headings=path)
        for heading in found:
            path = _below(path, heading)


def _below(path: tuple[str, ...], heading: re.Match[str]) -> tuple[str, ...]:
    depth = heading[1].count("=")
    return (*path[: depth - 1], heading[2])


def neighbours(passages: Mapping[str, Passage]) -> dict[str, str]:
    """The passage after each, where both are of one title: the sets do not say more of their files."""
    return {
        one: after
        for one, after in pairwise(passages)
        if passages[one].title and passages[one].title == passages[after].title
    }


def texts_of(questions: Iterable[Question]) -> list[str]:
    """Every text that is searched for, each once, in order."""
    return list(
        dict.fromkeys(
            text
            for question in questions
            for text in (question.text, *(w.text for w in question.also))
        )
    )

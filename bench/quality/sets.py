"""The data sets, and the two that are made from them by rule so that their passages stand below headings."""

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
_WIKI = "wikitexts"


def read_sets(folder: Path) -> dict[str, DataSet]:
    """The three sets below `folder`, and those with headings. Raises EvaluationError naming file and line."""
    sets = {name: read_data_set(folder / name, FollowUpWeights()) for name in NAMES}
    sets["xquad_en_wiki, titles as headings"] = titles_as_headings(sets["xquad_en_wiki"])
    sets["chunking_eval, wiki headings"] = wiki_headings(sets["chunking_eval"])
    return sets


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

"""Questions proposed for a golden file, made of a store's own headings and rare words. Pure, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

from retrieval.types import Passage
from server.golden import Expected, GoldenQuestion, headings_of

T = TypeVar("T")

#: Words of a proposed question, and the fewest that are worth asking with.
MOST_WORDS, FEWEST_WORDS = 7, 3
#: What a snippet of an expected passage has at most.
SNIPPET_CHARACTERS = 120
#: Lines of prose may be wrapped; a list, a table and a heading have a line for each of their parts.
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n\s*\n|\n(?=\s*[-*|#>])")
_WORD = re.compile(r"[^\W\d_]{3,}")


def propose(passages: Sequence[Passage], count: int) -> list[GoldenQuestion]:
    """At most `count` questions about a store that holds these passages; the same for the same store.

    They are spread evenly over the files, and over each file's length. One that names a heading which no other
    file has asks by that heading, each second one by the rarest words of a sentence.
    """
    ordered = sorted(passages, key=lambda passage: passage.place)
    word_counts = Counter(word for one in ordered for word in set(_words(one.text)))
    heading_files = Counter(
        heading
        for _, own in groupby(ordered, key=lambda passage: passage.file_id)
        for heading in {heading.casefold() for one in own for heading in headings_of(one)}
    )
    questions: dict[str, GoldenQuestion] = {}
    for passage in _spread(ordered, count):
        if len(questions) == count:
            break
        by_heading = _by_heading(passage, heading_files)
        by_words = _by_words(passage, word_counts)
        both = (by_heading, by_words) if len(questions) % 2 else (by_words, by_heading)
        for question in filter(None, both):
            if question.text not in questions:
                questions[question.text] = question
                break
    return list(questions.values())


def _spread(ordered: Sequence[Passage], count: int) -> Iterator[Passage]:
    """As many passages as are wanted, of files and places far apart; then the others, where some are no use."""
    files = [list(own) for _, own in groupby(ordered, key=lambda passage: passage.file_id)]
    chosen = _evenly(files, min(count, len(files)))
    rounds = -(-count // max(len(chosen), 1))
    picked = [_evenly(own, min(rounds, len(own))) for own in chosen]
    first = [own[turn] for turn in range(rounds) for own in picked if turn < len(own)]
    yield from first
    taken = {passage.id for passage in first}
    yield from (passage for passage in ordered if passage.id not in taken)


def _evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, each from the middle of an equal share."""
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _by_heading(passage: Passage, files: Mapping[str, int]) -> GoldenQuestion | None:
    """The passage's innermost heading below the title, asked for in its document."""
    headings = [one for one in headings_of(passage) if one != passage.title]
    heading = headings[-1] if headings else ""
    if not _words(heading) or files[heading.casefold()] > 1:
        return None
    text = f"{passage.title}: {heading}" if passage.title else heading
    return GoldenQuestion(text, Expected(passage.filename, heading))


def _by_words(passage: Passage, counts: Mapping[str, int]) -> GoldenQuestion | None:
    """The rarest words of the sentence that has the rarest, in their order."""
    sentences = [" ".join(part.split()) for part in _SENTENCE.split(passage.text)]
    best = max(sentences, key=lambda sentence: sum(_weights(sentence, counts)[:MOST_WORDS]))
    rarest = sorted(set(_words(best)), key=lambda word: (counts[word], -len(word), word))
    kept = set(rarest[:MOST_WORDS])
    words = [word for word in dict.fromkeys(_WORD.findall(best)) if word.casefold() in kept]
    if len(words) < FEWEST_WORDS:
        return None
    return GoldenQuestion(" ".join(words), Expected(passage.filename, passage=_snippet(best)))


def _weights(sentence: str, counts: Mapping[str, int]) -> list[float]:
    return sorted((1 / counts[word] for word in set(_words(sentence))), reverse=True)


def _snippet(sentence: str) -> str:
    """The beginning of a sentence, in whole words."""
    if len(sentence) <= SNIPPET_CHARACTERS:
        return sentence
    return sentence[:SNIPPET_CHARACTERS].rpartition(" ")[0] or sentence[:SNIPPET_CHARACTERS]


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]

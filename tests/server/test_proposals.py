"""Questions that are proposed for a store: the same each time, spread, and answered by what they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from retrieval.types import Passage
from server.golden import GoldenQuestion
from server.proposals import propose


def passage(file: str, chunk: int, text: str, *headings: str, title: str = "") -> Passage:
    return Passage(f"file-{file}", "0" * 64, chunk, file, text, title, headings)


ANIMALS = ("quagga", "okapi", "dugong", "serval", "numbat", "quokka", "pangolin", "tapir")


def store(files: int, chunks: int) -> list[Passage]:
    return [
        passage(
            f"{number:02}.md",
            chunk,
            "There is some common text here. "
            f"The {ANIMALS[(number + chunk) % 8]} number word{'abcdefgh'[chunk]} grazes at sunrise.",
            f"Book{number}",
            f"Chapter {'abcdefgh'[chunk]} of book{number}",
            title=f"Book{number}",
        )
        for number in range(files)
        for chunk in range(chunks)
    ]


def files_of(questions: Sequence[GoldenQuestion]) -> Counter[str | None]:
    return Counter(question.expected.file for question in questions)


def test_the_same_store_gives_the_same_questions_in_any_order() -> None:
    passages = store(5, 4)
    assert propose(passages, 10) == propose(passages[::-1], 10)


def test_each_question_is_answered_by_a_passage_of_the_store() -> None:
    passages = store(5, 4)
    questions = propose(passages, 20)
    assert len(questions) == len({question.text for question in questions}) == 20
    for question in questions:
        assert any(map(question.expected.matches, passages)), question


def test_they_are_spread_over_the_files() -> None:
    assert set(files_of(propose(store(5, 4), 10)).values()) == {2}
    few = propose(store(20, 2), 4)
    assert list(files_of(few)) == ["02.md", "07.md", "12.md", "17.md"]


def test_headings_and_rare_words_take_turns() -> None:
    words, heading = propose(store(3, 3), 2)
    assert words.expected.heading is None
    assert words.expected.passage is not None
    assert "grazes" in words.text
    assert "common" not in words.text
    assert heading.expected.passage is None
    assert heading.text == "Book2: Chapter b of book2"


def test_a_heading_of_many_files_asks_nothing() -> None:
    shared = [
        passage(f"{name}.md", 0, f"The {name} grazes at sunrise.", name, "Overview", title=name)
        for name in ANIMALS
    ]
    assert {question.expected.heading for question in propose(shared, 8)} == {None}


def test_what_says_too_little_is_passed_over_for_more_of_another_file() -> None:
    passages = [passage("empty.txt", 0, "1234 -- 99"), *store(1, 3)]
    assert files_of(propose(passages, 3)) == {"00.md": 3}
    assert propose(passages[:1], 3) == []
    assert propose([], 3) == []


def test_a_long_sentence_becomes_a_snippet_that_is_still_in_it() -> None:
    text = "A wrapped\nline " + "of many different words such as these " * 9
    one = passage("long.txt", 0, text)
    (question,) = propose([one], 1)
    assert question.expected.passage is not None
    assert len(question.expected.passage) <= 120
    assert question.expected.matches(one)

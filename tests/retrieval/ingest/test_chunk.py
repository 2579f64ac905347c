"""Chunking: sizes, nothing lost, sections respected, and fast."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.ingest.chunk import MAX_CHARS_PER_TOKEN, Chunk, chunk
from retrieval.ingest.document import Document, Section


def words(text: str) -> int:
    return len(text.split())


def quarters(text: str) -> int:
    """Like a byte-pair tokenizer: length counts, and pieces do not add up to the whole."""
    return -(-len(text.encode()) // 4)


def cut(*sections: Section, max_tokens: int = 10, overlap_tokens: int = 0) -> list[Chunk]:
    document = Document("t", sections)
    return chunk(document, count_tokens=words, max_tokens=max_tokens, overlap_tokens=overlap_tokens)


def sentence(count: int, mark: str = "w") -> str:
    return " ".join(f"{mark}{n}" for n in range(count)) + "."


def bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


texts = st.text(alphabet=st.sampled_from("ab. \n\té🦘。!?x,"), max_size=300) | st.text(max_size=80)
sections = st.lists(
    st.builds(
        Section,
        texts,
        st.lists(st.sampled_from(["A", "B", "C"]), max_size=3).map(tuple),
        st.none() | st.integers(1, 2),
    ),
    max_size=8,
)


@given(parts=sections, limit=st.integers(8, 40), count=st.sampled_from([words, quarters]))
def test_nothing_is_lost_and_nothing_is_too_long(
    parts: list[Section], limit: int, count: object
) -> None:
    assert callable(count)
    document = Document("t", tuple(parts))
    chunks = chunk(document, count_tokens=count, max_tokens=limit)
    assert chunks == chunk(document, count_tokens=count, max_tokens=limit)
    for part in chunks:
        assert part.text == part.text.strip() != ""
        assert count(part.text) <= limit
        assert len(part.text) <= limit * MAX_CHARS_PER_TOKEN
    body = "".join(re.sub(r"^#+ [ABC]$", "", c.text, flags=re.MULTILINE) for c in chunks)
    assert bare(body) == bare("".join(section.text for section in parts))


gaps = st.lists(st.sampled_from([" ", ". ", "\n", "\n\n", ""]), max_size=60)


@given(gaps=gaps, overlap=st.integers(1, 4))
def test_overlap_only_repeats(gaps: list[str], overlap: int) -> None:
    text = "".join(f"<{n}>{gap}" for n, gap in enumerate(gaps))
    document = Document("t", (Section(text),))
    chunks = chunk(document, count_tokens=quarters, max_tokens=8, overlap_tokens=overlap)
    position = 0
    for part in chunks:
        assert quarters(part.text) <= 8
        start = text.index(part.text, max(0, position - len(part.text)))
        assert text[position:start].strip() == ""
        assert quarters(text[start:position].strip()) <= overlap
        position = start + len(part.text)
    assert text[position:].strip() == ""


def test_overlap_is_the_end_of_the_chunk_before() -> None:
    chunks = cut(Section(sentence(30)), max_tokens=10, overlap_tokens=3)
    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        assert before.text.split()[-3:] == after.text.split()[:3]


def test_long_sections_are_cut_at_the_best_break_into_even_parts() -> None:
    text = f"{sentence(5)} {sentence(2, 'v')}\n\n{sentence(6, 'x')}"
    assert [c.text for c in cut(Section(text, ("H",), 3))] == text.split("\n\n")
    assert {(c.headings, c.page) for c in cut(Section(text, ("H",), 3))} == {(("H",), 3)}
    sentences = " ".join(sentence(4, mark) for mark in "abc")
    assert [words(c.text) for c in cut(Section(sentences))] == [8, 4]
    even = " ".join(sentence(3, mark) for mark in "abcd")
    assert [words(c.text) for c in cut(Section(even))] == [6, 6]


def test_the_whole_may_have_more_tokens_than_its_parts() -> None:
    def lines_cost_extra(text: str) -> int:
        return words(text) + 3 * text.count("\n")

    text = "\n".join(sentence(3, mark) for mark in "abcdefgh")
    chunks = chunk(Document("", (Section(text),)), count_tokens=lines_cost_extra, max_tokens=10)
    assert max(lines_cost_extra(c.text) for c in chunks) <= 10
    assert bare("".join(c.text for c in chunks)) == bare(text)


def test_small_neighbours_are_joined_under_their_common_heading() -> None:
    chunks = cut(
        Section("intro", ("Guide",)),
        Section("one two", ("Guide", "Setup")),
        Section("three", ("Guide", "Setup", "Linux")),
        max_tokens=16,
    )
    assert chunks == [
        Chunk("intro\n\n## Setup\n\none two\n\n### Linux\n\nthree", ("Guide",)),
    ]


def test_sections_that_stand_well_alone_are_not_joined() -> None:
    parts = [Section(sentence(6), (name,)) for name in "AB"]
    assert [c.headings for c in cut(*parts, max_tokens=12)] == [("A",), ("B",)]
    assert [c.headings for c in cut(*parts, max_tokens=40)] == [()]


def test_pages_are_never_mixed() -> None:
    chunks = cut(Section("a", page=1), Section("b", page=1), Section("c", page=2))
    assert [(c.text, c.page) for c in chunks] == [("a\n\nb", 1), ("c", 2)]


def test_an_enormous_word_is_split_even_if_the_tokenizer_calls_it_one_token() -> None:
    blob = "x" * 10_000
    chunks = cut(Section(blob))
    assert "".join(c.text for c in chunks) == blob
    assert max(len(c.text) for c in chunks) <= 10 * MAX_CHARS_PER_TOKEN


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_no_text_no_chunks(text: str) -> None:
    assert cut(Section(text)) == []


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 7"):
        cut(Section("a"), max_tokens=7)
    with pytest.raises(ValueError, match="overlap_tokens is 6"):
        cut(Section("a"), overlap_tokens=6)


def test_few_characters_are_tokenised() -> None:
    seen = 0

    def count(text: str) -> int:
        nonlocal seen
        seen += len(text)
        return words(text)

    text = "\n\n".join(sentence(70) for _ in range(300))
    chunk(Document("t", (Section(text),)), count_tokens=count, max_tokens=100)
    assert seen < 4 * len(text)

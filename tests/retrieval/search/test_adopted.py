"""Rows of a foreign collection as passages, and Chroma's distances as cosines."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.errors import DimensionMismatch
from retrieval.search.adopted import (
    CollectionFacts,
    Fields,
    Row,
    check_dimension,
    cosine,
    passage_of,
)

ROW = Row("8f2c", "The quagga.", {"source": "/data/zoo/zebra.pdf", "page": 2, "title": "Zebras"})


def test_a_langchain_row_is_a_passage() -> None:
    passage = passage_of("zoo", ROW, Fields())
    assert passage is not None
    assert (passage.filename, passage.title, passage.page) == ("zebra.pdf", "Zebras", 3)
    assert passage.text == "The quagga."
    again = passage_of("zoo", ROW, Fields())
    assert again is not None
    assert again.id == passage.id


def test_rows_of_one_source_are_one_file_and_a_changed_text_another_passage() -> None:
    rows = [ROW, Row("77aa", "Gravel.", ROW.metadata), Row("8f2c", "A quagga.", ROW.metadata)]
    found = [passage_of("zoo", row, Fields()) for row in rows]
    assert len({passage.file_id for passage in found if passage}) == 1
    assert len({passage.id for passage in found if passage}) == 3


def test_text_in_the_metadata_and_rows_without_text() -> None:
    row = Row("1", None, {"body": "Tea.", "page": True})
    passage = passage_of("zoo", row, Fields(text="body"))
    assert passage is not None
    assert (passage.text, passage.page, passage.filename) == ("Tea.", None, "1")
    assert passage_of("zoo", row, Fields()) is None


@pytest.mark.parametrize(
    ("key", "value", "page"),
    [("page", 0, 1), ("page", "2", 3), ("page_label", "12", 12), ("page_label", "xii", None),
     ("page_number", 1, 1), ("page", 1.5, None)],
)  # fmt: skip
def test_pages_are_counted_as_readers_do(key: str, value: object, page: int | None) -> None:
    passage = passage_of("zoo", Row("1", "Tea.", {key: value}), Fields(page=key))
    assert passage is not None
    assert passage.page == page


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_distances_of_unit_vectors_become_cosines(space: str) -> None:
    query, other = np.float32([1, 0]), np.float32([0.6, 0.8])
    distance = float(((query - other) ** 2).sum()) if space == "l2" else 1 - float(query @ other)
    assert cosine(Row("1", "", {}, distance), query, space) == pytest.approx(0.6)


@pytest.mark.parametrize("space", ["l2", "ip"])
def test_vectors_of_other_lengths_are_measured_themselves(space: str) -> None:
    query, other = np.float32([1, 0]), np.float32([6, 8])
    row = Row("1", "", {}, distance=-5.0, vector=other)
    assert cosine(row, query, space) == pytest.approx(0.6)


def test_a_mismatch_names_both_numbers() -> None:
    facts = CollectionFacts(1, "l2", (Row("1", "", {}, vector=np.ones(32, np.float32)),))
    assert not facts.unit
    with pytest.raises(DimensionMismatch, match=r"32 dimensions.*384"):
        check_dimension(facts, "minilm", 384)
    check_dimension(facts, "tiny", 32)

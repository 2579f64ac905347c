"""receipts: what is shown of the sources, in the types that clients parse it with."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from openai.types import VectorStoreSearchResponse
from openai.types.chat.chat_completion_message import Annotation

from retrieval.types import Candidate, Passage
from server import receipts
from server.receipts import Receipt


def link(passage: Passage) -> str:
    return f"http://host/v1/rag/passages/{passage.id}"


def candidate(number: int = 1, **fields: Any) -> Candidate:
    made = {"filename": f"f{number}.md", "text": f"Text {number}.", **fields}
    return Candidate(Passage(f"file-{number}", "ab" * 32, number, **made), 1.0 / number)


def receipt(count: int = 3, **fields: Any) -> Receipt:
    sources = fields.pop("sources", tuple(candidate(i) for i in range(1, count + 1)))
    return Receipt("hit", link, question="Why?", sources=sources, **fields)


def cited(text: str, sources: int = 3) -> list[tuple[int, int, int]]:
    return [(c.start, c.end, c.source) for c in receipts.find_citations(text, sources)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("no markers", []),
        ("a [1] b [3].", [(2, 5, 0), (8, 11, 2)]),
        ("a [1][2]", [(2, 5, 0), (5, 8, 1)]),
        ("a [1, 3] b", [(2, 8, 0), (2, 8, 2)]),
        ("a [0] [4] [1000] [-1] [x]", []),
        ("🙂é [2]", [(3, 6, 1)]),
        ("👩‍👩‍👧 [1]", [(6, 9, 0)]),  # five code points, one family
        ("[1]: so says the first", []),  # a reference definition
        ("As it says in [1]: yes", [(14, 17, 0)]),
        ("see [1](http://x) and [the [2] one](y)", [(27, 30, 1)]),
        ("[1](http://x/a_(b)) [2]", [(20, 23, 1)]),
        ("`a[1]` [2]", [(7, 10, 1)]),
        ("``a[1]`` [2]", [(9, 12, 1)]),
        ("a ` b [1]", [(6, 9, 0)]),
        ("```py\nx[1]\n``` [2]", [(15, 18, 1)]),
        ("~~~\nx[1]\n~~~ [2]", [(13, 16, 1)]),
        ("```\nx[1] never closed [2]", []),
        ("[[1]]", [(1, 4, 0)]),
    ],
)
def test_markers(text: str, found: list[tuple[int, int, int]]) -> None:
    assert cited(text) == found
    for start, end, _ in found:
        assert text[start:end].startswith("[")
        assert text[start:end].endswith("]")


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "text", ["[" * 200_000, "`" * 200_001 + "[", "[a](" * 50_000, "` " * 100_001]
)
def test_no_text_takes_long(text: str) -> None:
    assert cited(text + "[") == []


def test_annotations_parse_with_the_sdk() -> None:
    found, is_cited = receipts.annotate(receipt(), "Yes [2].")
    assert is_cited
    (annotation,) = [Annotation.model_validate(item, strict=True) for item in found]
    assert annotation.url_citation.url == f"http://host/v1/rag/passages/file-2/{'ab' * 8}/2"
    assert annotation.url_citation.title == "f2.md"
    assert (annotation.url_citation.start_index, annotation.url_citation.end_index) == (4, 7)
    assert annotation.model_extra == annotation.url_citation.model_extra == {}


def test_a_text_that_cites_nothing_has_all_sources_at_its_end() -> None:
    found, is_cited = receipts.annotate(receipt(), "Yes 🙂")
    assert not is_cited
    assert [item["url_citation"]["title"] for item in found] == ["f1.md", "f2.md", "f3.md"]
    assert {item["url_citation"]["start_index"] for item in found} == {5}
    assert {item["url_citation"]["end_index"] for item in found} == {5}


def test_no_sources_no_annotations() -> None:
    assert receipts.annotate(Receipt("miss", link, reason="no_hits"), "Yes [1]") == ([], False)


def test_the_rag_field() -> None:
    made = receipts.rag_field(receipt(2), {"embed": 6.1}, cited=True)
    (page,) = made["search_results"]
    assert made["status"] == "hit"
    assert "reason" not in made
    assert made["cited"] is True
    assert made["timings_ms"] == {"embed": 6.1}
    assert page["object"] == "vector_store.search_results.page"
    assert page["search_query"] == ["Why?"]
    assert (page["has_more"], page["next_page"]) == (False, None)
    results = [VectorStoreSearchResponse.model_validate(row, strict=True) for row in page["data"]]
    assert [result.file_id for result in results] == ["file-1", "file-2"]
    assert [result.score for result in results] == [1.0, 0.5]
    assert [result.content for result in results] == [[], []]


def test_text_only_when_asked_and_the_page_as_an_attribute() -> None:
    shown = receipt(sources=(candidate(page=12),), include_text=True)
    (row,) = receipts.rag_field(shown, {})["search_results"][0]["data"]
    result = VectorStoreSearchResponse.model_validate(row, strict=True)
    assert result.attributes == {"page": 12}
    assert result.content[0].text == "Text 1."


def test_a_miss_says_why_and_a_stream_does_not_know_cited() -> None:
    made = receipts.rag_field(Receipt("miss", link, reason="no_room", question="Why?"), {})
    assert (made["status"], made["reason"]) == ("miss", "no_room")
    assert "cited" not in made
    assert made["search_results"][0]["data"] == []


def test_the_footer_is_opt_in() -> None:
    assert receipts.footer(receipt(), "") == ""
    assert receipts.footer(Receipt("miss", link, footer=True), "") == ""
    tail = receipts.footer(receipt(2, footer=True), "")
    assert tail.startswith("\n\nSources:\n[1] f1.md: http://host/")
    assert tail.count("\n[") == 2


def test_sources_of_earlier_turns_are_shown_where_the_text_cites_them() -> None:
    made = receipt(3, found=(2,), footer=True)
    field = receipts.rag_field(made, {})["search_results"][0]["data"]
    assert [(row["file_id"], row["number"]) for row in field] == [("file-3", 3)]
    annotations, cited = receipts.annotate(made, "nothing cited")
    assert [a["url_citation"]["title"] for a in annotations] == ["f3.md"]
    assert not cited
    annotations, cited = receipts.annotate(made, "as said [1]")
    assert [a["url_citation"]["title"] for a in annotations] == ["f1.md"]
    assert cited
    assert re.findall(r"\n\[(\d)\]", receipts.footer(made, "nothing cited")) == ["3"]
    assert re.findall(r"\n\[(\d)\]", receipts.footer(made, "as said [1]")) == ["1", "3"]
    assert receipts.headers(made, {})["x-rag-sources"] == "file-3,file-1,file-2"
    assert receipts.footer(receipt(3, found=(), footer=True), "nothing cited") == ""


def test_headers() -> None:
    same_file = (candidate(1), candidate(2), candidate(1))
    made = receipts.headers(receipt(sources=same_file), {"embed": 6.1, "search": 3.421})
    assert made == {
        "x-rag-status": "hit",
        "x-rag-sources": "file-1,file-2",
        "server-timing": "embed;dur=6.1, search;dur=3.421",
    }
    assert receipts.headers(Receipt("off", link), {}) == {"x-rag-status": "off"}


def strange(ids: list[str]) -> Receipt:
    passages = [Passage(file_id, "a" * 64, 0, filename="x", text="t") for file_id in ids]
    return receipt(sources=tuple(Candidate(passage, 1.0) for passage in passages))


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([f"file-{i}" for i in range(20)], 20),
        ([f"file-{i}" for i in range(21)], 20),
        ([f"{i}" * 300 for i in range(10)], 6),
        (["x" * 5000], 0),
    ],
)
def test_the_list_of_sources_is_bounded(ids: list[str], kept: int) -> None:
    listed = receipts.headers(strange(ids), {})["x-rag-sources"]
    assert len(listed) <= 2048
    assert listed.endswith("...") == (kept < len(ids))
    assert [part for part in listed.split(",") if part and part != "..."] == ids[:kept]


def test_headers_are_ascii_and_one_line() -> None:
    listed = receipts.headers(strange(["é🙂", "a,b\r\nset-cookie: x", "\x00"]), {})["x-rag-sources"]
    assert listed.isascii()
    assert listed.isprintable()
    assert listed.count(",") == 2


def test_the_receipts_of_several_prompts_as_one() -> None:
    whole = Receipt("miss", link, reason="no_hits")
    hit = replace(receipt(2, found=(1, 0), context_tokens=7), question="One?")
    miss = Receipt("miss", link, reason="no_hits", question="Two?")
    more = replace(receipt(1, context_tokens=5), question="Three?")
    made = receipts.summed(whole, [hit, miss, more])
    assert (made.status, made.reason, made.context_tokens) == ("hit", None, 12)
    field = receipts.rag_field(made, {})
    pages = field["search_results"]
    assert [page["search_query"] for page in pages] == [["One?"], ["Two?"], ["Three?"]]
    found = [[row["file_id"] for row in page["data"]] for page in pages]
    assert found == [["file-2", "file-1"], [], ["file-1"]]
    assert receipts.headers(made, {})["x-rag-sources"] == "file-2,file-1"


def test_trouble_shows_where_no_prompt_has_sources() -> None:
    miss = Receipt("miss", link, reason="no_hits")
    degraded = Receipt("degraded", link, reason="timeout")
    made = receipts.summed(miss, [miss, degraded])
    assert (made.status, made.reason) == ("degraded", "timeout")


def test_sources_taken_out_again_are_in_no_part() -> None:
    parts = [receipt(2, context_tokens=9), Receipt("degraded", link, reason="timeout")]
    made = receipts.without_sources(receipts.summed(receipt(0), parts), "no_room")
    assert (made.status, made.reason, made.sources, made.context_tokens) == (
        "miss",
        "no_room",
        (),
        0,
    )
    assert [part.sources for part in made.parts] == [(), ()]
    out = [[(drop.candidate, drop.reason) for drop in part.dropped] for part in made.parts]
    assert out == [[(source, "no_room") for source in parts[0].sources], []]
    assert [part.status for part in made.parts] == ["miss", "degraded"]

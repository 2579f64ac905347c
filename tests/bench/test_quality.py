"""The instrument of docs/quality.md: real indexes over a small set, with vectors that a letter count gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest

from bench.quality.__main__ import parse
from bench.quality.measure import measure, ranked
from bench.quality.rankings import Corpus, Vectorizer, below_headings, below_title
from bench.quality.sets import (
    neighbours,
    rare_words,
    texts_of,
    titles_as_headings,
    wiki_headings,
)
from bench.quality.tables import rendered, tried, verdict
from bench.quality.variants import (
    DEFAULTS,
    contexts,
    deviations,
    min_max,
    variants,
    weighted_scores,
    with_following,
    without_near_copies,
)
from retrieval.embed.base import Vectors
from retrieval.fuse import Ranking
from retrieval.pipeline import FusionSettings
from retrieval.types import Hit, Passage, WeightedText
from server.evaluation import DataSet, Question, evaluate

TEXTS = {
    "a": "= Quagga = \n The quagga was a zebra of the Cape of Good Hope.",
    "b": "It had stripes on its head and neck alone. \n = = Decline = = ",
    "c": "The last one died in Amsterdam.",
    "d": "A zebra crossing has stripes.",
}
QUESTIONS = (
    Question("Which zebra lived at the Cape?", (), frozenset("a")),
    Question("Where did it die?", (WeightedText("quagga zebra died", 2.0, 0.5),), frozenset("c")),
    Question("stripes of a crossing", (), frozenset("d")),
)


class Letters:
    """Counts letters: texts with the same ones are alike. Says how often it was asked."""

    name = "letters"
    dimension = len(ascii_lowercase)
    max_tokens = 256

    def __init__(self) -> None:
        self.calls = 0

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        self.calls += 1
        counts = [[text.lower().count(letter) for letter in ascii_lowercase] for text in texts]
        vectors = np.asarray(counts, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    embed_passages = embed_queries

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def data(**titles: str) -> DataSet:
    passages = {
        id_: Passage(f"row-{number}", "0" * 64, 0, "", text, titles.get(id_, "wikitexts"))
        for number, (id_, text) in enumerate(TEXTS.items())
    }
    return DataSet(passages, QUESTIONS)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(data(d="roads"), Vectorizer(Letters(), tmp_path / "vectors", {}))


@pytest.mark.anyio
async def test_the_defaults_rank_as_the_server_does(corpus: Corpus, tmp_path: Path) -> None:
    served = await evaluate(corpus.data, Letters(), FusionSettings(), tmp_path / "data")
    found = measure(corpus, variants(corpus))["variants"]
    for name, way in (
        ("the defaults", "hybrid"),
        ("vectors alone", "dense"),
        ("keywords alone", "lexical"),
    ):
        for metric in ("recall@4", "ndcg@10"):
            estimate = served[way][metric]
            expected = [estimate.mean, estimate.low, estimate.high]
            assert found[name][metric] == pytest.approx(expected, abs=1e-4)


def test_each_variant_has_a_name_of_its_own_and_its_difference_to_the_defaults(
    corpus: Corpus,
) -> None:
    names = [variant.name for variant in variants(corpus)]
    found = measure(corpus, variants(corpus))
    assert list(found["variants"]) == names
    assert found["questions"] == 3
    defaults, *others = found["variants"].values()
    assert "difference" not in defaults
    for other in others:
        for metric in ("recall@4", "ndcg@10"):
            mean, low, high = other["difference"][metric]
            assert mean == pytest.approx(other[metric][0] - defaults[metric][0], abs=2e-4)
            assert low <= mean <= high


def test_only_what_can_make_a_difference_is_tried(tmp_path: Path) -> None:
    untitled = data(a="", b="", c="", d="")
    plain = Corpus(replace(untitled, questions=QUESTIONS[:1]), Vectorizer(Letters(), tmp_path, {}))
    names = {variant.name for variant in variants(plain)}
    assert not [n for n in names if "title" in n or "after it" in n or "last" in n]


def test_headings_are_tried_where_there_are_some(corpus: Corpus) -> None:
    headed = replace(corpus, data=wiki_headings(corpus.data))
    found = measure(headed, contexts())["variants"]
    assert next(iter(found)) == "the defaults"
    before = headed.vectors
    after = headed.embedded(below_headings)
    assert (before != after).any(axis=1).tolist() == [True, True, True, False]


def test_rare_words_are_asked_for() -> None:
    found = rare_words(data(d="Roads"), count=3).questions
    assert [question.text for question in found] == ["alone", "crossing", "quagga"]
    assert rare_words(data(), count=1).questions[0].positives == frozenset("b")


def test_vectors_are_made_once(tmp_path: Path) -> None:
    embedder = Letters()
    first = Vectorizer(embedder, tmp_path, {}).passages(["ab", "b"])
    assert Vectorizer(embedder, tmp_path, {}).passages(["ab", "b"]).tolist() == first.tolist()
    assert embedder.calls == 1
    Vectorizer(embedder, tmp_path, {}).passages(["ab", "c"])
    Vectorizer(embedder, tmp_path, {}).queries(["ab", "b"])
    assert embedder.calls == 3
    Vectorizer(embedder, tmp_path, {"query_precision": "f32"}).passages(["ab", "b"])
    assert embedder.calls == 4


def test_headings_are_those_above_the_start_of_a_passage() -> None:
    found = wiki_headings(data(d="roads"))
    paths = [passage.headings for passage in found.passages.values()]
    assert paths == [("Quagga",), ("Quagga",), ("Quagga", "Decline"), ()]
    # The last question is answered by a passage without headings.
    assert found.questions == QUESTIONS[:2]


def test_titles_become_headings() -> None:
    passage = titles_as_headings(data(a="Super_Bowl_50")).passages["a"]
    assert (passage.title, passage.headings) == ("", ("Super_Bowl_50",))
    assert below_headings(passage).startswith("Super Bowl 50\n= Quagga")
    assert below_title(data(a="Super_Bowl_50").passages["a"]).startswith("Super Bowl 50\n= Quagga")
    assert below_headings(Passage("f", "0", 0, "", "text")) == "text"


def test_neighbours_are_of_one_title() -> None:
    assert neighbours(data(d="roads").passages) == {"a": "b", "b": "c"}
    assert neighbours(data(a="", b="", c="", d="").passages) == {}


def test_every_text_is_asked_once() -> None:
    again = Question(QUESTIONS[0].text, (), frozenset("a"))
    assert len(texts_of([*QUESTIONS, again])) == 4


def test_scores_are_scaled_between_the_first_and_the_last() -> None:
    assert min_max([3.0, 2.0, 1.0]) == [1.0, 0.5, 0.0]
    assert deviations([3.0, 1.0]) == [2.0, 0.0]
    for scale in (min_max, deviations):
        assert scale([]) == []
        assert scale([2.0, 2.0]) == [1.0, 1.0]


def test_weighted_scores_add_up() -> None:
    dense = Ranking("search", [Hit("a", 0.9), Hit("b", 0.8), Hit("c", 0.1)])
    lexical = Ranking("lexical", [Hit("b", 20.0), Hit("d", 10.0)], 2.0)
    found = weighted_scores([dense, lexical], min_max)
    assert [hit.passage_id for hit in found] == ["b", "a", "c", "d"]
    assert found[0].score == pytest.approx(2 + 0.7 / 0.8)


def test_arrangements(corpus: Corpus) -> None:
    assert with_following(9)(corpus, ["b", "d", "a"]) == ["b", "c", "d", "a"]
    assert with_following(1)(corpus, ["d", "a"]) == ["d", "a"]
    assert without_near_copies(0.0)(corpus, ["d", "a"]) == ["d"]
    assert without_near_copies(1.1)(corpus, ["d", "a"]) == ["d", "a"]


def test_the_question_alone_leaves_the_turn_before_out(corpus: Corpus) -> None:
    dense = {text: [Hit("d", 1.0)] for text in corpus.texts}
    dense["quagga zebra died"] = [Hit("c", 1.0)]
    nothing: dict[str, list[Hit]] = {text: [] for text in corpus.texts}
    alone = next(v for v in variants(corpus) if not v.followup)
    assert ranked(corpus, alone, QUESTIONS[1], dense, nothing) == ["d"]
    assert ranked(corpus, DEFAULTS, QUESTIONS[1], dense, nothing) == ["c", "d"]


def test_a_text_has_its_own_weights(corpus: Corpus) -> None:
    nothing: dict[str, list[Hit]] = {text: [] for text in corpus.texts}
    lexical = {**nothing, "Where did it die?": [Hit("b", 2.0), Hit("c", 1.0)]}
    lexical["quagga zebra died"] = [Hit("a", 1.0)]
    assert ranked(corpus, DEFAULTS, QUESTIONS[1], nothing, lexical) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("recall", "ndcg", "said"),
    [
        ([0.1, 0.05, 0.2], [0.0, -0.1, 0.1], "better"),
        ([0.0, -0.1, 0.1], [-0.1, -0.2, -0.05], "worse"),
        ([0.1, 0.05, 0.2], [-0.1, -0.2, -0.05], "both"),
        ([0.1, 0.0, 0.2], [0.1, 0.0, 0.2], ""),
    ],
)
def test_a_verdict_needs_an_interval_without_0(
    recall: list[float], ndcg: list[float], said: str
) -> None:
    assert verdict({"recall@4": recall, "ndcg@10": ndcg}) == said


def saved() -> dict[str, Any]:
    one = {"recall@4": [0.5, 0.25, 0.75], "ndcg@10": [0.4, 0.3, 0.5]}
    difference = {"recall@4": [0.1, 0.05, 0.2], "ndcg@10": [0.0, -0.1, 0.1]}
    found = {"questions": 3, "variants": {"one": one, "two": {**one, "difference": difference}}}
    conditions = {
        "date": "2026-01-01", "cpu": "a CPU", "versions": {"tantivy": "1"}, "commit": "abc", "dirty": False,
        "embedder": "letters", "embedder_backend": "auto",
    }  # fmt: skip
    return {"measured": {}, "tried": {"conditions": conditions, "sets": {"a set": found}}}


def test_a_row_has_the_values_the_differences_and_what_they_say() -> None:
    lines = tried(saved()["tried"]).splitlines()
    assert lines[0] == "Measured 2026-01-01 with letters (auto) on a CPU (tantivy 1); commit abc."
    assert lines[2].startswith("| a set (3 questions) | recall@4 |")
    assert lines[4] == "| one | 0.500 (0.250-0.750) | 0.400 (0.300-0.500) |  |  |  |"
    assert lines[5].endswith("| +0.100 (+0.050 to +0.200) | +0.000 (-0.100 to +0.100) | better |")


def test_parts_are_chosen_by_name() -> None:
    assert parse(["folder"]).only == ("measured", "tried")
    assert parse(["folder", "--only", "tried"]).only == ["tried"]
    with pytest.raises(SystemExit):
        parse(["folder", "--only", "else"])


def test_a_page_keeps_its_prose() -> None:
    page = (
        "one\n<!-- table -->\nold\n<!-- /table -->\ntwo\n<!-- tried -->\n<!-- /tried -->\nthree\n"
    )
    shown = rendered(page, saved())
    assert "old" not in shown
    assert shown.startswith("one\n<!-- table -->\n| data set |")
    assert shown.endswith("| better |\n<!-- /tried -->\nthree\n")
    with pytest.raises(ValueError, match="the page has no <!-- tried"):
        rendered(page.replace("<!-- tried -->", ""), saved())

"""The cross-encoder stage with a real model of random weights: it shows the plumbing, never quality."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from retrieval.embed.base import Vectors
from retrieval.errors import RerankerError
from retrieval.lexical import LexicalIndex, LexicalWriter
from retrieval.pipeline import RerankSettings, Retriever
from retrieval.rerank import Reranker, open_reranker
from retrieval.trace import Trace
from retrieval.types import Candidate, Hit, Passage, Query

WORDS = ("zebra", "quagga", "tea", "green", "stripes", "cape", "crossing", "steeped")
PASSAGES = [
    Passage("file-a", "ab" * 32, i, "a.md", text)
    for i, text in enumerate(("zebra quagga cape", "green tea steeped", "zebra crossing stripes"))
]


def make_model(folder: Path, labels: int = 1) -> str:
    """A BERT of two small layers, random but the same each time."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir()
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, num_labels=labels, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("reranker") / "tiny")


def candidates() -> list[Candidate]:
    return [Candidate(p, 1 - p.chunk / 10, {"search": 0.5}) for p in PASSAGES]


@pytest.mark.anyio
async def test_scores_are_the_model_s_and_order_the_candidates(model: str) -> None:
    from sentence_transformers import CrossEncoder

    reranker = open_reranker(model, threads=1)
    found = await reranker.rerank("quagga", candidates())
    await reranker.close()
    plain = CrossEncoder(model, device="cpu").predict([("quagga", p.text) for p in PASSAGES])
    expected = dict(zip((p.text for p in PASSAGES), plain, strict=True))
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert len({round(c.score, 4) for c in found}) == 3
    for candidate in found:
        assert candidate.score == pytest.approx(float(expected[candidate.passage.text]), abs=1e-5)
        assert candidate.scores == {"search": 0.5, "rerank": candidate.score}


@pytest.mark.anyio
async def test_who_stops_waiting_ends_the_work(model: str) -> None:
    reranker = open_reranker(model, threads=1)
    waiting = asyncio.ensure_future(reranker.rerank("quagga", candidates() * 50_000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # The thread is free again: scoring 150,000 pairs would take minutes.
    assert len(await reranker.rerank("tea", candidates())) == 3
    await reranker.close()


def test_what_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RerankerError, match=r"reranker '.*nowhere' cannot be loaded"):
        open_reranker(str(tmp_path / "nowhere"), threads=1)


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RerankerError, match="has 3 labels"):
        open_reranker(make_model(tmp_path / "three", labels=3), threads=1)


class Reversed:
    """The pipeline's side of the stage: turns the order around."""

    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:  # noqa: ARG002
        return list(reversed(candidates))

    async def close(self) -> None: ...


class Endless(Reversed):
    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:  # noqa: ARG002
        await asyncio.Event().wait()
        raise AssertionError


class Failing(Reversed):
    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:  # noqa: ARG002
        raise RerankerError("out of memory")


class NoVectors:
    async def embed(self, text: str) -> Vectors:  # noqa: ARG002
        import numpy as np

        return np.zeros(2, dtype=np.float32)

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:  # noqa: ARG002
        return []


async def search(root: Path, reranker: Reranker | None) -> tuple[list[str], dict[str, str]]:
    with LexicalWriter(root, "a") as writer:
        writer.replace_file("file-a", PASSAGES)
        writer.commit()
    settings = RerankSettings(candidates=20, timeout_seconds=0.05)
    none = NoVectors()
    retriever = Retriever(none, none, LexicalIndex(root), None, reranker, settings)
    trace = Trace()
    found = await retriever.retrieve(Query("zebra quagga", ("a",), 4), trace)
    outcomes = {record.stage: record.outcome for record in trace.records}
    return [c.passage.text for c in found.candidates], outcomes


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reranker", "turned", "outcome"),
    [(Reversed(), True, "ok"), (Endless(), False, "timeout"), (Failing(), False, "error")],
)
async def test_the_fused_order_stays_without_an_answer_in_time(
    tmp_path: Path, reranker: Reranker, turned: bool, outcome: str
) -> None:
    fused, outcomes = await search(tmp_path, None)
    assert "rerank" not in outcomes
    found, outcomes = await search(tmp_path, reranker)
    assert found == (fused[::-1] if turned else fused)
    assert outcomes["rerank"] == outcome


class Noting(Reversed):
    def __init__(self) -> None:
        self.given: list[Candidate] = []

    async def rerank(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        self.given = list(candidates)
        return await super().rerank(question, candidates)


@pytest.mark.anyio
async def test_the_place_before_is_not_lost(tmp_path: Path) -> None:
    reranker = Noting()
    await search(tmp_path, reranker)
    assert [c.ranks for c in reranker.given] == [{"lexical": i, "fuse": i} for i in (1, 2)]
    assert [c.scores["fuse"] for c in reranker.given] == [c.score for c in reranker.given]

"""The values that travel between retrieval stages. Frozen: a stage returns new values, it never edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Passage:
    """One chunk of one file, as it can be shown, cited and injected.

    `content_hash` is the SHA-256 of the file's bytes in hex; `chunk` counts from 0 within the file.
    """

    file_id: str
    content_hash: str
    chunk: int
    filename: str
    text: str
    title: str = ""
    headings: tuple[str, ...] = ()
    page: int | None = None

    @property
    def id(self) -> str:
        """The key in both indexes and the tail of the passage's URL: file/hash/chunk."""
        return passage_id(self.file_id, self.content_hash, self.chunk)

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where it stands among all passages: files by name, and a file's passages in its own order."""
        return (self.filename, self.file_id, self.content_hash, self.chunk)

    @property
    def label(self) -> str:
        """What a reader sees as the source's name: the file, and the page where there is one."""
        return f"{self.filename}, p. {self.page}" if self.page is not None else self.filename


#: Hex digits of the content hash kept in ids and URLs: 64 bits, ample within one file's versions.
HASH_DIGITS = 16


def passage_id(file_id: str, content_hash: str, chunk: int) -> str:
    return f"{file_id}/{content_hash[:HASH_DIGITS]}/{chunk}"


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of one ranking: a passage's id and its score there (higher is better)."""

    passage_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that some ranking named, with its score and its rank at each stage that saw it.

    `scores` is keyed by stage (`search` cosine -1..1, `lexical` BM25, `rerank`, and then also `fuse`); `score` is
    the score the candidates are ordered by, 0..1. `ranks` count from 1 and are keyed in the same way; the rank
    by `score` is the candidate's place among the others. Where several texts found it, each is the best.
    """

    passage: Passage
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def shown_score(self) -> float:
        """The score as clients see it, and therefore what a threshold of theirs is compared with."""
        return round(self.score, 6)


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A text to search for, and how much its two rankings weigh beside the others' (a plain question's: 1)."""

    text: str
    dense: float = 1.0
    lexical: float = 1.0


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """How much the ranks of the dense and of the keyword rankings count; one of them may be 0."""

    dense: float
    lexical: float


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for, and where: `store_ids` are index names (one Chroma collection each).

    `text` is the question; `also` is searched beside it and fused with it. `weights` are the query's own in
    place of the retriever's.
    """

    text: str
    store_ids: tuple[str, ...]
    max_num_results: int
    also: tuple[WeightedText, ...] = ()
    weights: FusionWeights | None = None

    @property
    def enough(self) -> int:
        """How many candidates whoever asks may look at: some are duplicates, or too long to be taken."""
        return 2 * self.max_num_results + 4

    @property
    def texts(self) -> tuple[WeightedText, ...]:
        """Everything that is searched for, the question first."""
        return (WeightedText(self.text), *self.also)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The ranked candidates of one query, best first, and the best cosine that any passage had (None: no dense hit).

    `whole` is False where the reranker failed or ran out of time: asked again, the order may be another.
    """

    query: Query
    candidates: tuple[Candidate, ...]
    best_similarity: float | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Drop:
    """A candidate that was not packed, and why (`below_threshold`, `duplicate`, `over_limit`, `over_budget`)."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, slots=True)
class Context:
    """What goes into the prompt, numbered from 1 in this order; `tokens` is what it costs there."""

    sources: tuple[Candidate, ...]
    dropped: tuple[Drop, ...]
    tokens: int

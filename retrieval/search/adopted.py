"""A collection that something else fills: its rows as passages, its distances as cosines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retrieval.embed.base import Vectors
from retrieval.errors import DimensionMismatch, StoreUnavailable
from retrieval.types import Hit, Passage

#: Rows a request: some megabytes of text.
PAGE_ROWS = 1000
#: Rows whose vectors are looked at, to learn their size and length.
SAMPLE_ROWS = 64
#: How far from 1 a length may be that single precision made.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Fields:
    """The metadata keys of a row's text, title, source and page. `text` None: Chroma's own document."""

    text: str | None = None
    title: str = "title"
    source: str = "source"
    page: str = "page"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row as Chroma gives it; what was not asked for is None."""

    id: str
    document: str | None
    metadata: Mapping[str, Any]
    distance: float | None = None
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class CollectionFacts:
    """What a collection says of itself; `sample` is at least one of its rows, with their vectors."""

    rows: int
    space: str
    sample: tuple[Row, ...]

    @property
    def vectors(self) -> Vectors:
        """The sample's vectors, shape (rows, dimension)."""
        return np.stack([row.vector for row in self.sample if row.vector is not None])

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def unit(self) -> bool:
        """Whether every vector of the sample has length 1."""
        lengths = np.linalg.norm(self.vectors, axis=1)
        return bool(np.all(np.abs(lengths - 1.0) < UNIT_TOLERANCE))


class CollectionReader(Protocol):
    """The reads that adoption needs. Each raises StoreUnavailable; `collection` must exist."""

    async def facts(self, collection: str) -> CollectionFacts: ...

    def pages(self, collection: str) -> AsyncIterator[list[Row]]: ...

    async def nearest(
        self, collection: str, vector: Vectors, k: int, *, vectors: bool
    ) -> list[Row]: ...


def passage_of(collection: str, row: Row, fields: Fields) -> Passage | None:
    """The row as a passage, None where it has no text.

    Rows of one source are one file. The id depends on the row's own id, text and source alone, so that it
    stays the same when the collection is read again, and a row whose text has changed is another passage.
    """
    text = text_of(row, fields)
    if text is None:
        return None
    source = str(row.metadata.get(fields.source) or row.id)
    return Passage(
        file_id=f"file-{_digest(collection, source)[:32]}",
        content_hash=_digest(row.id, text),
        chunk=0,
        filename=source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source,
        text=text,
        title=str(row.metadata.get(fields.title) or ""),
        page=_page(row, fields.page),
    )


def _page(row: Row, key: str) -> int | None:
    """The page as a reader counts, from 1. Under `page` LangChain's loaders count from 0; other keys
    (`page_number`, `page_label`) hold what is printed on it."""
    page = row.metadata.get(key)
    if isinstance(page, str) and page.isascii() and page.isdigit():
        page = int(page)
    if not isinstance(page, int) or isinstance(page, bool):
        return None
    return page + 1 if key == "page" else page


def cosine(row: Row, query: Vectors, space: str) -> float:
    """The cosine of a row to the unit vector `query`, -1..1.

    From Chroma's distance (`cosine` 1 - cos, `ip` 1 - dot, `l2` the squared distance) where the row's vector
    has length 1 or the space is cosine; from the vector itself where the row has one.
    """
    if row.vector is not None:
        length = float(np.linalg.norm(row.vector))
        similarity = float(row.vector @ query) / length if length else 0.0
    elif row.distance is None:
        raise ValueError("a row with neither distance nor vector")
    elif space == "l2":
        similarity = 1.0 - row.distance / 2.0
    else:
        similarity = 1.0 - row.distance
    return min(1.0, max(-1.0, similarity))


def text_of(row: Row, fields: Fields) -> str | None:
    """The row's text, None where it has none."""
    text = row.document if fields.text is None else row.metadata.get(fields.text)
    return text if isinstance(text, str) and text.strip() else None


def check_dimension(facts: CollectionFacts, embedder: str, dimension: int) -> None:
    """Raises DimensionMismatch with both numbers."""
    if facts.dimension != dimension:
        raise DimensionMismatch(
            f"the collection holds vectors of {facts.dimension} dimensions and {embedder!r} makes "
            f"{dimension}: adopt it with the embedder that filled it"
        )


def agreement(facts: CollectionFacts, texts: Sequence[str | None], made: Vectors) -> float:
    """The median cosine of the sample's vectors to those that an embedder makes of the texts it has.

    Near 1 where this embedder filled the collection from these texts, near 0 where another one did.
    `made` has a row for each text that is not None.
    """
    given = facts.vectors[[text is not None for text in texts]]
    lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(made, axis=1)
    dots = np.einsum("ij,ij->i", given, made)
    return float(np.median(dots / np.maximum(lengths, np.finfo(np.float32).tiny)))


class AdoptedSearch:
    """Dense search over one adopted collection; its hits carry passage ids.

    With vectors that are not of length 1 under `ip` or `l2`, Chroma's own order chooses the rows and their
    exact cosines, which cost reading the vectors, score them.
    """

    def __init__(
        self, reader: CollectionReader, collection: str, fields: Fields, space: str, *, unit: bool
    ) -> None:
        self._reader = reader
        self._collection = collection
        self._fields = fields
        self._space = space
        self._exact = space != "cosine" and not unit

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        """The `k` nearest rows, best first. Raises StoreUnavailable, DimensionMismatch."""
        if k < 1:
            return []
        try:
            rows = await self._reader.nearest(self._collection, vector, k, vectors=self._exact)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"adopted store {store_id}: {error}") from error
        hits = []
        for row in rows:
            passage = passage_of(self._collection, row, self._fields)
            if passage is not None:
                hits.append(Hit(passage.id, cosine(row, vector, self._space)))
        return sorted(hits, key=lambda hit: -hit.score)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

"""The rankings that all variants of one set are made from: each text embedded once, each question asked once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.sets import neighbours, texts_of
from retrieval.embed.base import Embedder, Vectors
from retrieval.ingest.index import EMBED_BATCH
from retrieval.lexical import Keywords, LexicalIndex, LexicalWriter
from retrieval.types import Hit, Passage
from server.evaluation import STORE, DataSet

#: The deepest that any variant reads a ranking.
DEEPEST = 100
Embed = Callable[[Sequence[str]], Vectors]
Context = Callable[[Passage], str]


def text_alone(passage: Passage) -> str:
    return passage.text


def below_title(passage: Passage) -> str:
    return "\n".join(filter(None, (passage.title.replace("_", " "), passage.text)))


def below_headings(passage: Passage) -> str:
    """The heading path in a line of its own before the text."""
    path = " > ".join(heading.replace("_", " ") for heading in passage.headings)
    return f"{path}\n{passage.text}" if path else passage.text


class Vectorizer:
    """Embeds lists of texts, and keeps the vectors in `folder` for the next run."""

    def __init__(self, embedder: Embedder, folder: Path, made_with: Mapping[str, Any]) -> None:
        """`made_with` is what the vectors depend on beside the embedder's name."""
        self._embedder = embedder
        self._folder = folder
        self._made_with = dict(made_with)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._kept("passages", texts, self._embedder.embed_passages)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._kept("queries", texts, self._embedder.embed_queries)

    def _kept(self, kind: str, texts: Sequence[str], embed: Embed) -> Vectors:
        made = [self._embedder.name, self._made_with, kind, *texts]
        key = sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{key[:32]}.npy"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            batches = range(0, len(texts), EMBED_BATCH)
            vectors = np.concatenate([embed(texts[at : at + EMBED_BATCH]) for at in batches])
            unfinished = path.with_suffix(".new.npy")
            np.save(unfinished, vectors)
            unfinished.replace(path)
        found: Vectors = np.load(path)
        return found


@dataclass(frozen=True, eq=False)
class Corpus:
    """One data set with what is worked out for it once. Dense search is exact here, not Chroma's graph."""

    data: DataSet
    vectorizer: Vectorizer

    @cached_property
    def ids(self) -> list[str]:
        return list(self.data.passages)

    @cached_property
    def texts(self) -> list[str]:
        return texts_of(self.data.questions)

    @cached_property
    def following(self) -> Mapping[str, str]:
        return neighbours(self.data.passages)

    @cached_property
    def places(self) -> Mapping[str, int]:
        return {id_: place for place, id_ in enumerate(self.ids)}

    @cached_property
    def vectors(self) -> Vectors:
        """Of the passages' texts alone."""
        return self.vectorizer.passages([p.text for p in self.data.passages.values()])

    def embedded(self, context: Context) -> Vectors:
        """The vectors of the passages in this context; only those that it changes are embedded anew."""
        passages = list(self.data.passages.values())
        texts = {place: context(passage) for place, passage in enumerate(passages)}
        changed = [place for place, text in texts.items() if text != passages[place].text]
        vectors = self.vectors.copy()
        vectors[changed] = self.vectorizer.passages([texts[place] for place in changed])
        return vectors

    def dense(self, context: Context) -> dict[str, list[Hit]]:
        """The best passages of each text by cosine, best first."""
        vectors = self.vectors if context is text_alone else self.embedded(context)
        queries = self.vectorizer.queries(self.texts)
        return {
            text: self._nearest(vectors @ query)
            for text, query in zip(self.texts, queries, strict=True)
        }

    def _nearest(self, cosines: Vectors) -> list[Hit]:
        best = np.argsort(-cosines, kind="stable")[:DEEPEST]
        return [Hit(self.ids[place], float(cosines[place])) for place in best]

    def lexical(self, keywords: Keywords) -> dict[str, list[Hit]]:
        """The best passages of each text by BM25, from an index that is made for it."""
        names = {passage.id: id_ for id_, passage in self.data.passages.items()}
        with tempfile.TemporaryDirectory(
            prefix="groundwire-quality-", ignore_cleanup_errors=True
        ) as folder:
            with LexicalWriter(Path(folder), STORE, keywords) as writer:
                writer.add(list(self.data.passages.values()))
                writer.commit()
            index = LexicalIndex(Path(folder), keywords)
            return {
                text: [
                    Hit(names[hit.passage_id], hit.score)
                    for hit in index.search(STORE, text, DEEPEST)
                ]
                for text in self.texts
            }

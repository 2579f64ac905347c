"""The write path of one store: passages become vectors in Chroma and rows of the keyword index.

The order makes a crash harmless. New vectors come first: nothing shows them yet, since the keyword
index does not know their passages. Its commit is the switch, one for all files of a call. Then the
vectors of earlier versions go, which nothing can show any more. The caller acknowledges the files only
when `write` or `remove` returns, and repeats what it did not acknowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from anyio import to_thread

from retrieval.embed.base import Embedder
from retrieval.ingest.steps import Steps
from retrieval.lexical import LexicalWriter
from retrieval.search import VectorRow, VectorStore
from retrieval.types import HASH_DIGITS, Passage, passage_id

#: Moves when the same file and settings would be cut into other passages: files are then indexed anew.
INDEX_FORMAT = 1

#: Passages per embedding call: large enough to keep the model busy, small enough for a moving bar.
EMBED_BATCH = 32


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One version of one file as the indexes are to hold it.

    `replaces` says that an earlier version, or an interrupted attempt, may have left vectors;
    `replaced_chunks` is how many chunks the same content had when it was last cut.
    """

    file_id: str
    content_hash: str
    passages: tuple[Passage, ...]
    replaces: bool = False
    replaced_chunks: int = 0


class IndexWriter:
    """Writes one store through an open LexicalWriter; use it from one task. `steps` times what it does."""

    def __init__(
        self,
        store_id: str,
        embedder: Embedder,
        vectors: VectorStore,
        lexical: LexicalWriter,
        steps: Steps | None = None,
    ) -> None:
        self._store_id = store_id
        self._embedder = embedder
        self._vectors = vectors
        self._lexical = lexical
        self._steps = steps or Steps()

    async def write(self, files: Sequence[IndexedFile], on_embedded: Callable[[int], None]) -> None:
        """Index file versions in place of whatever the store had of these files.

        `on_embedded` hears of each batch with its number of passages. Raises RetrievalError; what
        searches see is then still the earlier versions, or already the new ones, of all files alike.
        """
        for batch in _batches([passage for file in files for passage in file.passages]):
            texts = [passage.text for passage in batch]
            with self._steps.step("embed"):
                embedded = await to_thread.run_sync(self._embedder.embed_passages, texts)
            rows = [
                VectorRow(passage.id, passage.file_id, passage.content_hash, vector)
                for passage, vector in zip(batch, embedded, strict=True)
            ]
            with self._steps.step("write"):
                await self._vectors.upsert(self._store_id, rows)
            on_embedded(len(batch))
        with self._steps.step("commit"):
            await to_thread.run_sync(self._switch, files)
        for file in files:
            if file.replaces:
                await self._sweep(file)

    async def remove(self, file_ids: Sequence[str]) -> None:
        """Take files out of both indexes; they leave the search at once. Raises RetrievalError."""
        await to_thread.run_sync(self._hide, file_ids)
        for file_id in file_ids:
            await self._vectors.delete_file(self._store_id, file_id)

    def _switch(self, files: Sequence[IndexedFile]) -> None:
        for file in files:
            self._lexical.replace_file(file.file_id, file.passages)
        self._lexical.commit()

    def _hide(self, file_ids: Sequence[str]) -> None:
        for file_id in file_ids:
            self._lexical.delete_file(file_id)
        self._lexical.commit()

    async def _sweep(self, file: IndexedFile) -> None:
        keep = file.content_hash[:HASH_DIGITS]
        await self._vectors.delete_file(self._store_id, file.file_id, keep_hash=keep)
        # The same content cut into fewer chunks than before: the tail has the hash that is kept.
        tail = range(len(file.passages), file.replaced_chunks)
        if tail:
            ids = [passage_id(file.file_id, file.content_hash, chunk) for chunk in tail]
            await self._vectors.delete_passages(self._store_id, ids)


def _batches(passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    for start in range(0, len(passages), EMBED_BATCH):
        yield passages[start : start + EMBED_BATCH]

"""What an ingest says while it runs and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Kinds that end the work on one file.
Outcome = Literal["added", "replaced", "unchanged", "removed", "failed"]


@dataclass(frozen=True, slots=True)
class IngestEvent:
    """One step. `waiting`: for the process in `detail`; `found`: `total` files; `embedded`: `chunks` more.

    The other kinds are about the file `name` (`detail` says why it failed) and come when the result is
    durable: `done` of `total` files are through.
    """

    kind: Literal["waiting", "found", "embedded"] | Outcome
    name: str = ""
    detail: str = ""
    chunks: int = 0
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, in files; `failed` holds (name, reason), `chunks` counts what was embedded.

    `skipped` counts files in folders whose type cannot be read.
    """

    store_id: str
    store_name: str
    added: int
    replaced: int
    unchanged: int
    removed: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    chunks: int
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def changed(self) -> bool:
        """Whether the store holds something else now."""
        return bool(self.added or self.replaced or self.removed)


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a reindex did with one store. `failed` holds (name, reason) of files that could not be read again."""

    store_id: str
    store_name: str
    embedder: str
    files: int
    failed: tuple[tuple[str, str], ...]
    chunks: int
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.failed


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """What was found in an adopted collection.

    Rows without text are `rows - passages`; `files` counts different sources. `agreement` is the median cosine
    of a few of its vectors to those that `embedder` makes of their texts; `space` is its distance.
    """

    store_id: str
    store_name: str
    collection: str
    embedder: str
    dimension: int
    space: str
    agreement: float
    rows: int
    passages: int
    files: int
    seconds: float

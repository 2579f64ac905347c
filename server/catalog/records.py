"""The values that the catalog hands out. Frozen: a change is a new row read, never an edit."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval.types import Passage

Status = Literal["in_progress", "completed", "failed", "cancelled"]

#: Who owns what is made without a key: the command line, and a server without keys.
LOCAL_TENANT = "local"


def new_store_id() -> str:
    return f"vs_{secrets.token_hex(16)}"


def is_store_id(ref: str) -> bool:
    """Whether `ref` has the form of an id; a store's name may have it too, and ids win."""
    return re.fullmatch(r"vs_[0-9a-f]{32}", ref) is not None


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A collection that something else fills: where it is, how its rows read, what it held when last read.

    `headers_env` is the variable that holds the connection's headers, which are themselves never kept.
    `embedder` is the name to load, `query_prefix` None what that embedder was trained with; `text_field` None
    is Chroma's own document.
    """

    chroma_url: str
    collection: str
    embedder: str
    chroma_tenant: str = "default_tenant"
    chroma_database: str = "default_database"
    headers_env: str | None = None
    query_prefix: str | None = None
    text_field: str | None = None
    title_field: str = "title"
    source_field: str = "source"
    page_field: str = "page"
    rows: int = 0
    passages: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class Store:
    """A vector store. Times are Unix seconds; `version` moves with each write to its index.

    `embedder` and `dimension` are None until the first file is ingested. `generation` counts the rebuilt
    indexes; `adopted` is set for a store that is read-only here.
    """

    id: str
    tenant: str
    name: str
    metadata: Mapping[str, Any]
    created_at: int
    last_active_at: int
    version: int
    embedder: str | None
    dimension: int | None
    generation: int = 0
    adopted: Adopted | None = None

    @property
    def index_name(self) -> str:
        """The name of the store's collection and keyword index."""
        return index_name(self.id, self.generation)


def index_name(store_id: str, generation: int) -> str:
    """The store's id, and from the first rebuild on its generation behind it."""
    return f"{store_id}.{generation}" if generation else store_id


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """What a store holds: files that are completed, their passages, and the bytes of those files."""

    files: int
    passages: int
    usage_bytes: int


@dataclass(frozen=True, slots=True)
class FileCount:
    """How many of a store's files have one status, and how many passages they have together."""

    store_id: str
    status: Status
    files: int
    passages: int


@dataclass(frozen=True, slots=True)
class File:
    """A file as the user gave it; `content_hash` (SHA-256, hex) is the key of its bytes."""

    id: str
    tenant: str
    filename: str
    bytes: int
    content_hash: str
    purpose: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Membership:
    """A file in a store. `indexed_hash` is the content that was last indexed completely (None: none yet).

    `file.content_hash` is the content that was last accepted: the two differ while work is in progress.
    `source` is the file's identity for the ingester (an absolute path), None for uploads.
    """

    store_id: str
    file: File
    source: str | None
    status: Status
    error_code: str | None
    error_message: str | None
    indexed_hash: str | None
    chunks: int
    usage_bytes: int
    attributes: Mapping[str, Any]
    chunking: Mapping[str, Any]
    created_at: int


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One content of one file on its way into a store, with the passages that it was cut into."""

    file_id: str
    filename: str
    bytes: int
    content_hash: str
    source: str | None
    passages: tuple[Passage, ...]
    chunking: Mapping[str, Any] = field(default_factory=dict)

    @property
    def usage_bytes(self) -> int:
        """Bytes of text that the store keeps for the file."""
        return sum(len(passage.text.encode()) for passage in self.passages)


@dataclass(frozen=True, slots=True)
class RebuiltFile:
    """What a rebuilt index holds of one file."""

    file_id: str
    content_hash: str
    chunks: int
    usage_bytes: int
    chunking: Mapping[str, Any]

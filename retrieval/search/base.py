"""What retrieval asks of a vector store: one collection per store id, cosine space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from retrieval.embed.base import Vectors
from retrieval.types import Hit

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, eq=False)
class VectorRow:
    """One passage's vector, shape (dim,); `passage_id` as `retrieval.types.passage_id` makes it.

    `content_hash` may be the file's whole SHA-256: the store keeps its first HASH_DIGITS digits.
    """

    passage_id: str
    file_id: str
    content_hash: str
    vector: Vectors

    @property
    def chunk(self) -> int:
        """The chunk number at the end of the passage id. Raises ValueError where there is none."""
        return int(self.passage_id.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class ChromaEndpoint:
    """Where a Chroma server listens. `headers` go with every request (a token, for example)."""

    host: str
    port: int
    ssl: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tenant: str = "default_tenant"
    database: str = "default_database"
    #: Added to the address in messages: whose server this is.
    note: str = ""

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str] | None = None) -> ChromaEndpoint:
        """Read `http[s]://host[:port]`; without a port, the scheme's own (80 or 443).

        Raises ValueError for any other form: a path, a query or a password would be silently ignored.
        """
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError(f"Chroma URL {parts.hostname or url!r}: must be http[s]://host[:port]")
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"Chroma URL of {parts.hostname}: pass credentials as headers instead")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(f"Chroma URL {url!r}: must end after the host and port")
        port = parts.port if parts.port is not None else DEFAULT_PORTS[parts.scheme]
        return cls(parts.hostname, port, parts.scheme == "https", dict(headers or {}))

    @property
    def netloc(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"{self.bracketed_host}:{self.port}"

    @property
    def bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def described(self) -> str:
        """How messages name the server."""
        return f"{self.netloc} ({self.note})" if self.note else self.netloc

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl else 'http'}://{self.netloc}"

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


class VectorStore(Protocol):
    """Vectors by store. Every method raises StoreUnavailable when the server does not answer in time.

    A store without a collection is an empty one: reads find nothing and deletes do nothing.
    """

    async def upsert(self, store_id: str, rows: Sequence[VectorRow]) -> None:
        """Write rows, creating the collection at need. Raises DimensionMismatch."""

    async def query(self, store_id: str, vector: Vectors, k: int) -> list[Hit]:
        """The `k` nearest rows to `vector` of shape (dim,), best first; score is the cosine, -1..1.

        Raises DimensionMismatch.
        """

    async def delete_passages(self, store_id: str, ids: Sequence[str]) -> None:
        """Remove rows by passage id; unknown ids are ignored."""

    async def delete_file(self, store_id: str, file_id: str, keep_hash: str | None = None) -> None:
        """Remove a file's rows, except those of the content hash `keep_hash`."""

    async def delete_store(self, store_id: str) -> None:
        """Remove the whole collection."""

    async def count(self, store_id: str) -> int:
        """How many rows the store holds."""

    async def heartbeat(self) -> None:
        """Return when the server answers."""

    async def close(self) -> None:
        """Close the connections; the store can no longer be used."""

"""The bytes of files, kept under the SHA-256 of their content: `blobs/<ab>/<sha256>`."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]


def content_hash(data: bytes) -> str:
    """SHA-256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


class BlobStore:
    """A content-addressed folder, local or in object storage (any fsspec URL). Methods block.

    Bytes that are no longer referred to stay until something collects them: deleting here while
    another process accepts the same bytes could lose what it acknowledged.
    """

    def __init__(self, root: str | Path) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        found: tuple[Any, str] = url_to_fs(str(root))
        self._fs: AbstractFileSystem = found[0]
        self._root = found[1].rstrip("/")
        self._local = "file" in _protocols(self._fs)

    def put(self, data: bytes) -> str:
        """Keep `data` and return its hash; when this returns, the bytes survive a crash."""
        digest = content_hash(data)
        path = self._path(digest)
        # An earlier write is complete by construction: names appear by rename only.
        if not self._fs.exists(path):
            if self._local:
                _write_durably(Path(path), data)
            else:
                self._fs.pipe_file(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes kept under `digest`. Raises FileNotFoundError."""
        data: bytes = self._fs.cat_file(self._path(digest))
        return data

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._path(digest)))

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The names are durable only once their directories are.
    for directory in (path.parent, path.parent.parent):
        _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

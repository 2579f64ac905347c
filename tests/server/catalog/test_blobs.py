"""Bytes under their hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from server.catalog import BlobStore


@pytest.fixture(params=["folder", "memory://"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    root = tmp_path / "blobs" if request.param == "folder" else f"memory://{tmp_path}"
    return BlobStore(root)


@pytest.mark.parametrize("data", [b"", b"hello", os.urandom(100_000)])
def test_bytes_come_back(blobs: BlobStore, data: bytes) -> None:
    digest = blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert blobs.exists(digest)
    assert blobs.get(digest) == data
    assert blobs.put(data) == digest


def test_absent_bytes(blobs: BlobStore) -> None:
    assert not blobs.exists("0" * 64)
    with pytest.raises(FileNotFoundError):
        blobs.get("0" * 64)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    blobs = BlobStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            blobs.put(b"hello")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert blobs.get(blobs.put(b"hello")) == b"hello"

"""How an adopted store's connection is described, and what is kept of its headers."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from retrieval.errors import StoreUnavailable
from server.adopted import endpoint_of
from server.catalog import Adopted

ADOPTED = Adopted(
    "https://chroma.example:8443",
    "zoo",
    "minilm",
    chroma_tenant="acme",
    chroma_database="books",
    headers_env="CHROMA_HEADERS",
)


def test_headers_come_from_the_environment_and_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHROMA_HEADERS", "X-Chroma-Token: s3cret\nAuthorization: Bearer a:b")
    endpoint = endpoint_of(ADOPTED)
    assert endpoint.headers == {"X-Chroma-Token": "s3cret", "Authorization": "Bearer a:b"}
    assert (endpoint.url, endpoint.ssl) == ("https://chroma.example:8443", True)
    assert (endpoint.tenant, endpoint.database) == ("acme", "books")
    assert "s3cret" not in repr(endpoint) + str(asdict(ADOPTED))


def test_headers_that_are_missing_or_malformed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMA_HEADERS", raising=False)
    with pytest.raises(StoreUnavailable, match="CHROMA_HEADERS is not set"):
        endpoint_of(ADOPTED)
    monkeypatch.setenv("CHROMA_HEADERS", "s3cret")
    with pytest.raises(StoreUnavailable, match="must hold `Name: value`") as refused:
        endpoint_of(ADOPTED)
    assert "s3cret" not in str(refused.value)

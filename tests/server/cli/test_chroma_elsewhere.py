"""A Chroma server with tenants, databases and credentials, as Chroma Cloud is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import httpx
import pytest

from retrieval.search import ChromaChild, ChromaEndpoint
from server.cli import main
from server.settings import Settings


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[ChromaEndpoint]:
    """A Chroma of its own that has the database `prod` of the tenant `acme`."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ChromaChild(tmp_path)) as child,
    ):
        api = f"{child.endpoint.url}/api/v2/tenants"
        httpx.post(api, json={"name": "acme"}).raise_for_status()
        httpx.post(f"{api}/acme/databases", json={"name": "prod"}).raise_for_status()
        yield child.endpoint


def collections(chroma: ChromaEndpoint, database: str) -> list[str]:
    answer = httpx.get(f"{chroma.url}/api/v2/tenants/{database}/collections").raise_for_status()
    return [one["name"] for one in answer.json() if one["name"].startswith("vs_")]


def test_commands_work_in_the_database_that_is_named(
    chroma: ChromaEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tea.txt").write_text("Morva tea is steeped for eleven minutes.\n")
    monkeypatch.setenv("GROUNDWIRE_CHROMA_TENANT", "acme")
    monkeypatch.setenv("GROUNDWIRE_CHROMA_DATABASE", "prod")
    where = ["--data-dir", str(tmp_path / "data"), "--chroma-url", chroma.url, "--store", "docs"]
    assert main(["ingest", str(tmp_path / "tea.txt"), "--quiet", *where]) == 0
    assert len(collections(chroma, "acme/databases/prod")) == 1
    assert collections(chroma, "default_tenant/databases/default_database") == []
    assert main(["search", "Morva tea", *where]) == 0


def test_credentials_go_along_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_CHROMA_HEADERS", json.dumps({"x-chroma-token": "ck-secret"}))
    settings = Settings(chroma_url="https://api.trychroma.com")
    assert settings.chroma is not None
    assert settings.chroma.headers == {"x-chroma-token": "ck-secret"}
    assert (settings.chroma.port, settings.chroma.ssl) == (443, True)
    assert "ck-secret" not in f"{settings!r} {settings.chroma!r}"

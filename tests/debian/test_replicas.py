"""Live mode: servers with directories of their own, on one PostgreSQL and one Chroma."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from retrieval.search import ChromaChild
from tests.debian.servers import Postgres
from tests.server.api.bench import (
    DEADLINE_SECONDS,
    GROUNDWIRE,
    QUESTION,
    ROUTE,
    chat,
    eventually,
    write_documents,
)
from tests.server.api.test_process import Process, serving

pytestmark = [pytest.mark.anyio, pytest.mark.debian]

TEA = "How long is Morva tea steeped?"


@dataclass
class Replicas:
    """Two servers, and the folder that `ingest` reads into the store `docs` on the first one's machine."""

    postgres: Postgres
    settings: dict[str, str]
    folder: Path
    homes: list[Path]
    servers: list[Process]

    def ingest(self, machine: int = 0, store: str = "docs") -> subprocess.Popen[str]:
        variables = {"GROUNDWIRE_" + name.upper(): value for name, value in self.settings.items()}
        command = [GROUNDWIRE, "ingest", self.folder, "--store", store, "--prune", "--quiet"]
        environment = {**os.environ, **variables, "GROUNDWIRE_DATA_DIR": str(self.homes[machine])}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ingested(self, machine: int = 0) -> None:
        said = self.ingest(machine)
        _, errors = said.communicate(timeout=DEADLINE_SECONDS)
        assert said.returncode == 0, errors

    def ask(self, server: int, question: str = QUESTION, **fields: Any) -> httpx.Response:
        headers = {"authorization": "Bearer k"}
        return httpx.post(
            f"{self.servers[server].ready()}{ROUTE}", json=chat(question, **fields), headers=headers,
            trust_env=False, timeout=DEADLINE_SECONDS,
        )  # fmt: skip

    def sources(self, server: int, question: str = QUESTION) -> list[str]:
        answer = self.ask(server, question, rag={"include_text": True}).json()
        return [row["content"][0]["text"] for row in answer["rag"]["search_results"][0]["data"]]


@pytest.fixture
async def chroma_url(tmp_path: Path) -> AsyncIterator[str]:
    async with ChromaChild(tmp_path / "chroma") as child:
        yield child.endpoint.url


@pytest.fixture
def replicas(postgres: Postgres, chroma_url: str, tmp_path: Path) -> Iterator[Replicas]:
    settings = {
        "catalog_url": postgres.new_database(),
        "chroma_url": chroma_url,
        "default_store": "docs",
        "api_keys": "local:k",
        "signing_secret": "the same on all replicas",
        "retrieval_timeout_seconds": str(DEADLINE_SECONDS),
    }
    homes = [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(home, **settings)) for home in homes]
        folder = write_documents(tmp_path / "docs")
        yield Replicas(postgres, settings, folder, homes, servers)


async def test_what_one_ingests_the_other_answers(replicas: Replicas) -> None:
    def story() -> None:
        for server in (0, 1):
            assert replicas.ask(server).headers["x-rag-status"] == "miss"
        replicas.ingested(0)
        for server in (0, 1):
            assert replicas.ask(server).headers["x-rag-status"] == "hit"
            assert "thirty days" in replicas.sources(server)[0]

        # What a reader is sent to, signed by one, shown by the other.
        link = replicas.ask(0).json()["choices"][0]["message"]["annotations"][0]
        url = httpx.URL(link["url_citation"]["url"]).copy_with(
            port=int(replicas.servers[1].ready().rpartition(":")[2])
        )
        page = httpx.get(url, trust_env=False, timeout=DEADLINE_SECONDS)
        assert page.status_code == 200, page.text
        assert "thirty days" in page.text

        # Changed and removed files, from the other machine: at once, in the next answer.
        (replicas.folder / "handbook.md").write_text("A loan of the reading room: ninety days.\n")
        (replicas.folder / "tea.txt").unlink()
        replicas.ingested(1)
        for server in (0, 1):
            assert "ninety days" in replicas.sources(server)[0]
            assert not any("Morva" in text for text in replicas.sources(server, TEA))

    await anyio.to_thread.run_sync(story)


async def test_two_machines_that_ingest_at_once_make_one_store(replicas: Replicas) -> None:
    def story() -> None:
        for ingest in [replicas.ingest(0), replicas.ingest(1)]:
            _, errors = ingest.communicate(timeout=DEADLINE_SECONDS)
            assert ingest.returncode == 0, errors
        for server in (0, 1):
            assert len(replicas.sources(server)) == len(set(replicas.sources(server)))
            assert "thirty days" in replicas.sources(server)[0]

    await anyio.to_thread.run_sync(story)


async def test_while_the_database_is_away_answers_go_without_sources(replicas: Replicas) -> None:
    def story() -> None:
        replicas.ingested(0)
        assert replicas.ask(0).headers["x-rag-status"] == "hit"
        replicas.postgres.stop()
        try:
            answer = replicas.ask(0)
            assert (answer.status_code, answer.headers["x-rag-status"]) == (200, "degraded")
            refused = replicas.ask(0, rag={"on_error": "fail"})
            assert refused.status_code == 503
            assert (
                httpx.get(f"{replicas.servers[0].ready()}/ready", trust_env=False).json()["catalog"]
                != "ok"
            )
        finally:
            replicas.postgres.start()
        eventually(lambda: replicas.ask(0).headers["x-rag-status"] == "hit")
        assert not any("Traceback" in line for line in replicas.servers[0].lines)

    await anyio.to_thread.run_sync(story)

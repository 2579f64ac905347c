"""A store whose index is rebuilt while it is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.embedding import open_embedder
from server.ingestion import ReindexJob, reindex_stores
from server.settings import Settings
from tests.server.api.bench import Bench, Running, ingest_by_command, write_documents

QUESTION = "When does the quagga graze?"
TEXT = "\n\n".join(f"The quagga grazes at dawn in the valley number {n}." for n in range(6))


async def reindex(settings: Settings) -> None:
    embedder = await asyncio.to_thread(open_embedder, settings, lambda _: None)
    job = ReindexJob(
        ("rebuilt",),
        settings.data_dir,
        settings.resolved_catalog_url,
        chunk_tokens=14,
        grace_seconds=0,
    )
    await reindex_stores(job, embedder)


def passages(running: Running) -> tuple[set[str], set[str]]:
    """The texts that a chat is grounded in, and those of the search route."""
    rag = {"vector_store_ids": ["rebuilt"], "include_text": True}
    chat = running.ask(QUESTION, rag=rag).json()["rag"]["search_results"][0]
    url = "/v1/vector_stores/rebuilt/search"
    page = running.client.post(url, json={"query": QUESTION}).json()
    found, searched = (
        {part["text"] for one in each["data"] for part in one["content"]} for each in (chat, page)
    )
    return found, searched


def test_chat_and_search_follow_the_store_to_its_next_index(bench: Bench, tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "files", {"quagga.md": TEXT})
    ingest_by_command(bench.settings.data_dir, folder, "rebuilt")
    with bench.serve(retrieval_cache_entries=100, embedding_cache_entries=100) as running:
        before = passages(running)
        assert all(before)
        assert passages(running) == before
        bench.run(reindex(bench.settings))
        after = passages(running)
    assert all(after)
    assert not after[0] & before[0]
    assert not after[1] & before[1]

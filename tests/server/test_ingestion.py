"""Ingestion against a real Chroma, a real keyword index and a real catalog."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from retrieval.embed import QueryBatcher
from retrieval.lexical import LexicalIndex
from retrieval.pipeline import Retriever
from retrieval.search import ChromaChild, connect
from retrieval.trace import Trace
from retrieval.types import Candidate, Query
from server.catalog import (
    AmbiguousStore,
    Catalog,
    EmbedderConflict,
    Membership,
    Store,
    StoreNotFound,
)
from server.ingestion import IngestBusy, IngestError, IngestEvent, IngestReport, ingest_paths
from server.ingestion.lock import ingest_lock
from server.telemetry.ingests import read_totals
from tests.server.ingest_child import HashEmbedder, job

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("ingest_child.py")
ALL = 1000


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def chroma_url(
    anyio_backend: str,  # noqa: ARG001 - makes the loop live as long as the child
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[str]:
    async with ChromaChild(tmp_path_factory.mktemp("chroma")) as child:
        yield child.endpoint.url


@dataclass
class World:
    """A folder of documents, a data directory, and what a reader sees of them."""

    root: Path
    data_dir: Path
    chroma_url: str
    embedder: HashEmbedder = field(default_factory=HashEmbedder)
    events: list[IngestEvent] = field(default_factory=list)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    async def ingest(self, *paths: Path, **changes: Any) -> IngestReport:
        options = {"prune": False} | changes
        embedder = options.pop("embedder", self.embedder)
        one = replace(
            job(self.data_dir, *(paths or (self.root,)), chroma_url=self.chroma_url), **options
        )
        return await ingest_paths(one, embedder, self.events.append)

    async def catalog(self) -> Catalog:
        return await Catalog.open(job(self.data_dir).catalog_url)

    async def store(self, ref: str = "docs") -> Store:
        async with await self.catalog() as catalog:
            return await catalog.find_store("local", ref)

    async def members(self) -> dict[str, Membership]:
        store = await self.store()
        async with await self.catalog() as catalog:
            return {member.file.filename: member for member in await catalog.memberships(store.id)}

    async def search(self, text: str) -> tuple[Candidate, ...]:
        store = await self.store()
        batcher = QueryBatcher(HashEmbedder())
        try:
            async with connect(self.data_dir, self.chroma_url) as chroma:
                lexical = LexicalIndex(self.data_dir / "lexical")
                query = Query(text, (store.id,), ALL)
                return (
                    await Retriever(batcher, chroma.store, lexical).retrieve(query, Trace())
                ).candidates
        finally:
            await batcher.close()

    async def counts(self) -> tuple[int, int]:
        """Rows in (Chroma, keyword index)."""
        store = await self.store()
        async with connect(self.data_dir, self.chroma_url) as chroma:
            lexical = LexicalIndex(self.data_dir / "lexical").count(store.id)
            return await chroma.store.count(store.id), lexical


@pytest.fixture
def world(tmp_path: Path, chroma_url: str) -> World:
    root = tmp_path / "files"
    root.mkdir()
    return World(root, tmp_path / "data", chroma_url)


def words(number: int, count: int) -> str:
    return " ".join(f"w{number}x{index}" for index in range(count))


def files_of(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.passage.filename for candidate in candidates]


async def test_a_folder_becomes_searchable(world: World) -> None:
    world.write("guide/zebra.md", "# Zebras\n\nThe quagga was a zebra of the Cape.")
    world.write("other.txt", "Nothing to see but gravel.")
    world.write("image.xyz", b"\x00\x01")
    report = await world.ingest()
    assert (report.added, report.skipped, report.failed) == (2, 1, ())
    assert report.ok
    best = (await world.search("which zebra lived at the Cape"))[0]
    assert best.passage.filename == "guide/zebra.md"
    assert best.passage.title == "Zebras"
    assert set(best.scores) == {"search", "lexical"}
    kinds = [event.kind for event in world.events]
    assert kinds == ["found", "embedded", "added", "added"]
    assert (world.events[-1].done, world.events[-1].total) == (2, 2)


async def test_a_passage_is_in_the_catalog_too(world: World) -> None:
    world.write("a.md", "The quagga was a zebra.")
    await world.ingest()
    passage = (await world.search("quagga"))[0].passage
    async with await world.catalog() as catalog:
        found = await catalog.passage(
            passage.file_id, passage.content_hash[:16], passage.chunk, "local"
        )
    assert found == passage


async def test_unchanged_files_are_not_read_again(world: World) -> None:
    world.write("a.md", "alpha")
    await world.ingest()
    version = (await world.store()).version
    world.embedder.embedded.clear()
    report = await world.ingest()
    assert (report.unchanged, report.added, report.replaced, report.chunks) == (1, 0, 0, 0)
    assert world.embedder.embedded == []
    assert (await world.store()).version == version


async def test_a_changed_file_is_replaced_and_keeps_its_id(world: World) -> None:
    world.write("a.md", "the old text speaks of walruses")
    await world.ingest()
    before, version = await world.members(), (await world.store()).version
    world.write("a.md", "the new text speaks of pelicans")
    report = await world.ingest()
    after = await world.members()
    assert (report.replaced, report.added) == (1, 0)
    assert after["a.md"].file.id == before["a.md"].file.id
    assert (await world.store()).version > version
    (found,) = await world.search("walruses")
    assert "pelicans" in found.passage.text
    assert await world.counts() == (1, 1)


async def test_other_chunking_cuts_the_file_anew(world: World) -> None:
    world.write("a.md", "\n\n".join(words(number, 12) for number in range(12)))
    await world.ingest(chunk_tokens=12)
    assert await world.counts() == (12, 12)
    report = await world.ingest(chunk_tokens=200)
    assert report.replaced == 1
    assert await world.counts() == (1, 1)


async def test_prune_removes_what_is_gone_below_the_given_paths(world: World) -> None:
    world.write("a/one.md", "one walrus")
    world.write("b/two.md", "two walruses")
    await world.ingest()
    shutil.rmtree(world.root / "a")
    (world.root / "b/two.md").unlink()

    assert (await world.ingest()).removed == 0
    assert (await world.ingest(world.root / "b", prune=True)).removed == 1
    assert files_of(await world.search("walrus")) == ["a/one.md"]
    report = await world.ingest(world.root / "a", prune=True)
    assert (report.removed, report.failed) == (1, ())
    assert await world.search("walrus") == ()
    assert await world.counts() == (0, 0)
    assert await world.members() == {}


async def test_a_path_that_does_not_exist_fails_and_the_rest_goes_on(world: World) -> None:
    world.write("a.md", "alpha")
    absent = world.root.resolve() / "absent"
    for prune in (False, True):
        report = await world.ingest(absent, world.root, prune=prune)
        assert report.failed == ((str(absent), "no such file or folder"),)
        assert not report.ok
    assert files_of(await world.search("alpha")) == ["a.md"]


async def test_unreadable_files_are_named_and_the_rest_goes_on(world: World) -> None:
    world.write("a.md", "alpha")
    world.write("b.pdf", b"no pdf at all")
    world.write("c.md", b"")
    world.write("d.md", "x" * 200)
    report = await world.ingest(max_file_bytes=100)
    assert report.added == 1
    assert [name for name, _ in report.failed] == ["b.pdf", "c.md", "d.md"]
    assert all(reason for _, reason in report.failed)
    assert "max_file_bytes" in dict(report.failed)["d.md"]
    assert list(await world.members()) == ["a.md"]


async def test_what_ingests_did_is_kept_for_the_servers(world: World) -> None:
    world.write("a.md", "alpha")
    world.write("b.pdf", b"no pdf at all")
    await world.ingest()
    partial = read_totals(world.data_dir)
    assert partial.runs == {"partial": 1}
    assert partial.files == {"added": 1, "failed": 1}
    assert abs(partial.last_success - time.time()) < 60
    assert {step: sum(taken.counts) for step, taken in partial.steps.items()} == {
        "load": 2, "chunk": 1, "embed": 1, "write": 1, "commit": 1,
    }  # fmt: skip
    assert all(taken.sum_seconds > 0 for taken in partial.steps.values())

    (world.root / "b.pdf").unlink()
    await world.ingest()
    ok = read_totals(world.data_dir)
    with pytest.raises(EmbedderConflict):
        await world.ingest(embedder=HashEmbedder("other", 32))
    failed = read_totals(world.data_dir)
    assert failed.runs == {"partial": 1, "ok": 1, "failed": 1}
    assert failed.files == {"added": 1, "failed": 1, "unchanged": 1}
    assert failed.last_success == ok.last_success > partial.last_success


async def test_a_type_that_is_not_supported_fails_only_when_it_is_named(world: World) -> None:
    path = world.write("a.xyz", b"\x00")
    assert (await world.ingest()).failed == ()
    ((name, reason),) = (await world.ingest(path)).failed
    assert name == "a.xyz"
    assert "not supported" in reason


async def test_a_file_that_became_unreadable_keeps_its_earlier_version(world: World) -> None:
    world.write("a.md", "the walrus")
    await world.ingest()
    world.write("a.md", b"")
    ((_, reason),) = (await world.ingest()).failed
    assert "stays searchable" in reason
    assert files_of(await world.search("walrus")) == ["a.md"]


async def test_equal_content_at_two_paths_is_two_files(world: World) -> None:
    world.write("a.md", "the same walrus")
    world.write("b.md", "the same walrus")
    assert (await world.ingest()).added == 2
    assert sorted(files_of(await world.search("walrus"))) == ["a.md", "b.md"]


async def test_a_file_larger_than_a_group_is_whole(world: World) -> None:
    world.write("a.md", "\n\n".join(words(number, 30) for number in range(100)))
    world.write("b.md", "small")
    report = await world.ingest()
    assert report.chunks == 101
    assert await world.counts() == (101, 101)
    assert [event.chunks for event in world.events if event.kind == "embedded"] == [
        32,
        32,
        32,
        4,
        1,
    ]


async def test_another_embedder_is_refused_by_name(world: World) -> None:
    world.write("a.md", "alpha")
    await world.ingest()
    with pytest.raises(EmbedderConflict) as raised:
        await world.ingest(embedder=HashEmbedder("other", 32))
    assert "'hash'" in str(raised.value)
    assert "'other'" in str(raised.value)


async def test_stores_by_id_and_ambiguous_names(world: World) -> None:
    world.write("a.md", "alpha")
    store_id = (await world.ingest()).store_id
    assert (await world.ingest(store=store_id)).unchanged == 1
    with pytest.raises(StoreNotFound):
        await world.ingest(store="vs_" + "0" * 32)
    async with await world.catalog() as catalog:
        second = await catalog.create_store("local", "docs")
    with pytest.raises(AmbiguousStore) as raised:
        await world.ingest()
    assert set(raised.value.ids) == {store_id, second.id}


async def test_a_file_whose_removal_was_interrupted_and_which_came_back(world: World) -> None:
    world.write("a.md", "the walrus")
    report = await world.ingest()
    (member,) = (await world.members()).values()
    async with await world.catalog() as catalog:
        await catalog.reopen(report.store_id, [member.file.id])
    assert (await world.ingest()).replaced == 1
    assert (await world.members())["a.md"].status == "completed"


@pytest.mark.parametrize("lost", ["lexical", "vectors"])
async def test_a_lost_index_is_filled_again(world: World, lost: str) -> None:
    world.write("a.md", "the walrus")
    store_id = (await world.ingest()).store_id
    if lost == "lexical":
        shutil.rmtree(world.data_dir / "lexical")
    else:
        async with connect(world.data_dir, world.chroma_url) as chroma:
            await chroma.store.delete_store(store_id)
    await world.ingest()
    assert await world.counts() == (1, 1)


async def test_an_overlap_without_room_is_refused(world: World) -> None:
    with pytest.raises(IngestError, match="chunk_overlap_tokens is 30; it must be 0 to 20"):
        await world.ingest(chunk_overlap_tokens=30)


async def test_an_ingest_waits_for_another_and_gives_up_with_its_pid(world: World) -> None:
    world.write("a.md", "alpha")
    held = ingest_lock(world.data_dir / "ingest.lock", 1, lambda _: None)
    async with held:
        with pytest.raises(IngestBusy, match=f"process {os.getpid()}"):
            await world.ingest(lock_timeout_seconds=0.2)
    assert [event.detail for event in world.events] == [str(os.getpid())]
    assert (await world.ingest()).added == 1


async def test_concurrent_first_ingests_make_one_store(world: World) -> None:
    world.write("a.md", "alpha")
    reports: list[IngestReport] = []

    async def one() -> None:
        reports.append(await world.ingest())

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    assert sorted((report.added, report.unchanged) for report in reports) == [(0, 1), (1, 0)]
    assert reports[0].store_id == reports[1].store_id


async def test_a_cancelled_ingest_shows_whole_files_and_is_finished_later(world: World) -> None:
    for number in range(6):
        text = "\n\n".join(f"walrus {words(number * 100 + part, 30)}" for part in range(30))
        world.write(f"{number}.md", text)
    with anyio.CancelScope() as scope:

        def cancel_in_the_second_group(event: IngestEvent) -> None:
            world.events.append(event)
            if sum(each.chunks for each in world.events) > 100:
                scope.cancel()

        one = job(world.data_dir, world.root, chroma_url=world.chroma_url)
        await ingest_paths(one, world.embedder, cancel_in_the_second_group)
    assert scope.cancelled_caught
    totals = read_totals(world.data_dir)
    assert (totals.runs, totals.files) == ({"cancelled": 1}, {"added": 3})
    assert totals.last_success == 0
    members = await world.members()
    assert Counter(member.status for member in members.values()) == {
        "completed": 3,
        "in_progress": 3,
    }
    assert Counter(files_of(await world.search("walrus"))) == {
        name: 30 for name, member in members.items() if member.status == "completed"
    }

    report = await world.ingest()
    assert (report.added, report.unchanged) == (3, 3)
    assert Counter(files_of(await world.search("walrus"))) == {f"{n}.md": 30 for n in range(6)}
    assert await world.counts() == (180, 180)


async def test_interrupted_files_are_finished_from_the_bytes_that_were_kept(world: World) -> None:
    path = world.write("a.md", "the walrus")
    other = world.write("other/b.md", "beta")
    with anyio.CancelScope() as scope:

        def cancel(event: IngestEvent) -> None:
            if event.kind == "embedded":
                scope.cancel()

        one = job(world.data_dir, path, chroma_url=world.chroma_url)
        await ingest_paths(one, world.embedder, cancel)
    assert await world.search("walrus") == ()
    path.unlink()
    report = await world.ingest(other)
    assert report.added == 2
    assert files_of(await world.search("walrus"))[0] == "a.md"


def run_and_kill(command: list[str], lines: int) -> list[list[str]]:
    """Kill the process when it has said so many lines; returns the words of each."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return said


@pytest.mark.parametrize("lines", [2, 4, 9])
async def test_a_killed_ingest_loses_nothing_and_is_finished_by_the_next(
    world: World, lines: int
) -> None:
    for number in range(12):
        text = "\n\n".join(f"walrus {words(number * 100 + part, 30)}" for part in range(20))
        world.write(f"{number:02}.md", text)
    command = [sys.executable, str(CHILD), str(world.data_dir), str(world.root), world.chroma_url]
    said = await anyio.to_thread.run_sync(run_and_kill, command, lines)
    acknowledged = {line[2] for line in said if line[0] == "added"}

    shown = Counter(files_of(await world.search("walrus")))
    assert acknowledged <= set(shown)
    assert set(shown.values()) <= {20}
    report = await world.ingest()
    assert report.ok
    assert Counter(files_of(await world.search("walrus"))) == {f"{n:02}.md": 20 for n in range(12)}
    assert await world.counts() == (240, 240)
    assert {member.status for member in (await world.members()).values()} == {"completed"}

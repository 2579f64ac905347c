"""An ingest into the next published version: what it starts from, what it publishes, what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from retrieval.embed import Vectors
from retrieval.lexical import LexicalIndex
from server.auth import signing_key
from server.catalog import LOCAL_TENANT, Catalog, sqlite_url
from server.ingestion import Publication, publish_paths
from server.published import InUse, check, current, folder, writer_lock
from server.telemetry.ingests import FILE, read_totals
from tests.server.api.bench import GROUNDWIRE
from tests.server.ingest_child import HashEmbedder, job

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.anyio


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "tea.txt").write_text("Morva tea is steeped for eleven minutes.")
    (documents / "ferry.txt").write_text("The ferry leaves on Tuesdays.")
    return documents


async def found(version: Path, word: str) -> list[str]:
    """The files of a version in which the word stands, by its keyword index."""
    async with await Catalog.open(sqlite_url(version / "catalog.db")) as catalog:
        store = await catalog.find_store(LOCAL_TENANT, "docs")
    index = LexicalIndex(version / "lexical")
    ids = [hit.passage_id for hit in index.search(store.index_name, word, 9)]
    return [passage.filename for passage in index.passages(store.index_name, ids).values()]


async def test_each_version_is_the_last_one_and_what_changed(
    documents: Path, tmp_path: Path
) -> None:
    # The published directory is below the documents, and is none of them.
    published, data_dir = documents / "published", tmp_path / "data"
    embedder = HashEmbedder()

    async def publish() -> Publication:
        return await publish_paths(job(data_dir, documents), embedder, published)

    first = await publish()
    assert (first.version, first.new, first.report.added) == (1, True, 2)
    assert list(data_dir.iterdir()) == []

    embedded = len(embedder.embedded)
    (documents / "tea.txt").write_text("Morva tea is steeped for twelve minutes.")
    second = await publish()
    assert (second.version, second.new) == (2, True)
    assert (second.report.replaced, second.report.unchanged) == (1, 1)
    assert len(embedder.embedded) == embedded + 1
    assert await found(folder(published, 1), "eleven") == ["tea.txt"]
    assert await found(folder(published, 2), "twelve") == ["tea.txt"]
    assert await found(folder(published, 2), "eleven") == []
    assert signing_key(folder(published, 1) / "secret") == signing_key(
        folder(published, 2) / "secret"
    )

    again = await publish()
    assert (again.version, again.new, again.report.unchanged) == (2, False, 2)
    assert current(published) == 2

    # Beside the versions, for the last run has none of its own.
    totals = read_totals(published)
    assert totals.runs == {"ok": 3}
    assert totals.files == {"added": 2, "replaced": 1, "unchanged": 3}
    assert not (folder(published, 2) / FILE).exists()

    with writer_lock(published), pytest.raises(InUse):
        await publish()


async def test_bytes_that_no_file_has_any_more_are_left_out(
    documents: Path, tmp_path: Path
) -> None:
    published = tmp_path / "published"

    async def bytes_of(version: int) -> set[bytes]:
        await publish_paths(job(tmp_path / "data", documents), HashEmbedder(), published)
        assert current(published) == version
        return {blob.read_bytes() for blob in (folder(published, version) / "blobs").glob("*/*")}

    tea, ferry = documents / "tea.txt", documents / "ferry.txt"
    assert await bytes_of(1) == {tea.read_bytes(), ferry.read_bytes()}
    ferry.unlink()
    tea.write_text("Morva tea is steeped for twelve minutes.")
    (documents / "gravel.txt").write_text("Gravel is sold by the ton.")
    assert await bytes_of(2) == {tea.read_bytes(), b"Gravel is sold by the ton."}


async def test_an_ingest_that_fails_publishes_nothing(documents: Path, tmp_path: Path) -> None:
    published, data_dir = tmp_path / "published", tmp_path / "data"

    class Broken(HashEmbedder):
        def embed_passages(self, texts: Sequence[str]) -> Vectors:  # noqa: ARG002
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        await publish_paths(job(data_dir, documents), Broken(), published)
    assert {path.name for path in published.iterdir()} == {"writer.lock", FILE}
    assert read_totals(published).runs == {"failed": 1}
    assert list(data_dir.iterdir()) == []


async def test_one_that_cannot_publish_has_failed(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.ingestion.publish.publish", full)
    with pytest.raises(OSError, match="No space left"):
        await publish_paths(job(tmp_path / "data", documents), HashEmbedder(), published)
    totals = read_totals(published)
    assert (totals.runs, totals.files, totals.last_success) == ({"failed": 1}, {"added": 2}, 0.0)


def test_the_command_publishes_and_says_which_version(documents: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    (documents / "broken.pdf").write_bytes(b"no PDF")

    ran = subprocess.run(
        [GROUNDWIRE, "ingest", documents, "--store", "docs", "--publish", published, "--json"],
        env={**os.environ, "GROUNDWIRE_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    # A file that cannot be read is said, and keeps nothing else from being published.
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["published_version"] == 1
    assert current(published) == 1


@pytest.mark.parametrize(
    ("below", "files", "version", "said"),
    [
        ("published/v-2", "catalog.db", 2, "v-2 was published"),
        ("published/v-2", "MANIFEST", 2, "v-2 was published"),
        ("published/v-2", "catalog.db,MANIFEST", 1, "nothing was published, v-1 is current"),
        ("data", "catalog.db", 1, "nothing was published, v-1 is current"),
    ],
)
def test_ctrl_c_while_files_are_copied(
    documents: Path, tmp_path: Path, below: str, files: str, version: int, said: str
) -> None:
    """One waits for the copy that is being made; a second one does not, and `CURRENT` stays."""
    published, data_dir = tmp_path / "published", tmp_path / "data"
    command = ["ingest", documents, "--store", "docs", "--publish", published, "--quiet"]
    environment = {**os.environ, "GROUNDWIRE_DATA_DIR": str(data_dir)}
    subprocess.run([GROUNDWIRE, *command], env=environment, check=True, timeout=120)
    (documents / "gravel.txt").write_text("Gravel is sold by the ton.")

    stopped = subprocess.run(
        [sys.executable, ROOT / "tests/server/publish_stopped.py", tmp_path / below, files, *command],
        cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (stopped.returncode, stopped.stderr) == (130, f"groundwire ingest: stopped; {said}\n")
    assert current(published) == version
    check(folder(published, version))
    assert anyio.run(found, folder(published, version), "ferry") == ["ferry.txt"]
    new = anyio.run(found, folder(published, version), "gravel")
    assert new == (["gravel.txt"] if version == 2 else [])
    assert list(data_dir.iterdir()) == []

"""What the server says of stores that it cannot search as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from retrieval.lexical import LexicalIndex, LexicalWriter
from server.catalog import Adopted, Catalog, FileVersion, Store, sqlite_url
from server.checkup import Checkup

pytestmark = pytest.mark.anyio


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with await Catalog.open(sqlite_url(tmp_path / "catalog.db")) as opened:
        yield opened


@pytest.fixture
async def store(catalog: Catalog) -> Store:
    made = await catalog.create_store("acme", "handbook")
    return await catalog.bind_embedder(made.id, "minilm", 384)


def checkup(catalog: Catalog, tmp_path: Path, embedder: str = "minilm") -> Checkup:
    return Checkup(catalog, LexicalIndex(tmp_path / "lexical"), embedder, nothing)


async def nothing(store: Store) -> str | None:  # noqa: ARG001
    return None


async def test_a_fitting_store_gives_no_warning(
    catalog: Catalog, store: Store, tmp_path: Path
) -> None:
    assert store.embedder == "minilm"
    looking = checkup(catalog, tmp_path)
    await looking.look()
    assert looking.warnings == ()


async def test_another_embedder_is_told_and_names_the_store_in_the_log_alone(
    catalog: Catalog, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looking = checkup(catalog, tmp_path, "bge")
    await looking.look()
    (warning,) = looking.warnings
    assert "groundwire reindex" in warning
    assert "handbook" not in warning
    assert f"groundwire reindex {store.id}" in caplog.text
    caplog.clear()
    await looking.look()
    assert caplog.text == ""  # said once


async def test_files_cut_in_another_format(catalog: Catalog, store: Store, tmp_path: Path) -> None:
    version = FileVersion("file-1", "a.txt", 1, "0" * 64, None, (), {"format": -1})
    await catalog.begin(store.id, "acme", [version])
    await catalog.complete(store.id, [version])
    looking = checkup(catalog, tmp_path)
    await looking.look()
    assert len(looking.warnings) == 1


async def test_a_damaged_keyword_index(catalog: Catalog, store: Store, tmp_path: Path) -> None:
    with LexicalWriter(tmp_path / "lexical", store.index_name) as writer:
        writer.commit()
    (tmp_path / "lexical" / store.index_name / "meta.json").write_text("{}")
    looking = checkup(catalog, tmp_path)
    await looking.look()
    assert len(looking.warnings) == 1


async def test_an_adopted_store_is_asked_about_and_not_reindexed(
    catalog: Catalog, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adopted = Adopted("http://127.0.0.1:1", "zoo", "bge")
    await catalog.switch_adopted(store.id, 1, "bge", 512, adopted)

    async def moved(asked: Store) -> str | None:
        assert asked.adopted == adopted
        return "holds 5 rows, and 4 when it was last read: run `groundwire adopt` again"

    looking = Checkup(catalog, LexicalIndex(tmp_path / "lexical"), "minilm", moved)
    await looking.look()
    assert len(looking.warnings) == 1
    assert "holds 5 rows" in caplog.text
    assert "reindex" not in caplog.text


async def test_the_look_out_outlives_whatever_fails(
    catalog: Catalog, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.embedder == "minilm"
    looking = checkup(catalog, tmp_path, "bge")
    await rename_table(catalog, "stores", "gone")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(looking.watch, 0)
            while "could not be looked at" not in caplog.text:
                await checkpoint()
            await rename_table(catalog, "gone", "stores")
            while not looking.warnings:
                await checkpoint()
            group.cancel_scope.cancel()


async def rename_table(catalog: Catalog, old: str, new: str) -> None:
    """Break the catalog under its user, or mend it."""
    async with catalog._write() as connection:
        await connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

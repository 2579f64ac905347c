"""following: another machine's keyword index becomes what the catalog says that searches see."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from retrieval.errors import IndexMissing
from retrieval.lexical import LexicalIndex, LexicalWriter
from server.catalog import (
    Adopted,
    Catalog,
    FileVersion,
    RebuiltFile,
    Store,
    index_name,
    new_file_id,
    sqlite_url,
)
from server.following import Following
from tests.server.catalog import test_files
from tests.server.catalog.test_files import NEW, OLD, put
from tests.server.test_checkup import rename_table

pytestmark = pytest.mark.anyio


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with await Catalog.open(sqlite_url(tmp_path / "catalog.db")) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "there" / "lexical"


@pytest.fixture
async def store(catalog: Catalog) -> Store:
    return await catalog.create_store("local", "docs")


async def follow(catalog: Catalog, root: Path) -> LexicalIndex:
    """As a process that has just started."""
    await Following(catalog, root).follow(await catalog.find_store("local", "docs"), 0)
    return LexicalIndex(root)


def version(file_id: str, digest: str, *texts: str) -> FileVersion:
    return test_files.version(file_id, digest, *texts, source=f"/docs/{file_id}")


def index_names(store: Store, generations: int) -> list[str]:
    return [index_name(store.id, generation) for generation in range(generations)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def words(index: LexicalIndex, store: Store, word: str) -> int:
    return len(index.search(store.index_name, word, 10))


async def test_what_is_new_changed_and_gone(catalog: Catalog, store: Store, root: Path) -> None:
    kept, changed, gone = (version(new_file_id(), OLD, word) for word in ("kept", "old", "gone"))
    for one in (kept, changed, gone):
        await put(catalog, store, one)
    index = await follow(catalog, root)
    assert [words(index, store, word) for word in ("kept", "old", "gone")] == [1, 1, 1]
    assert index.passages(store.index_name, [kept.passages[0].id]) == {
        kept.passages[0].id: kept.passages[0]
    }

    await put(catalog, store, version(changed.file_id, NEW, "fresh"))
    await catalog.remove(store.id, [gone.file_id])
    index = await follow(catalog, root)
    found = [words(index, store, word) for word in ("kept", "old", "gone", "fresh")]
    assert found == [1, 0, 0, 1]


async def test_what_is_not_complete_is_not_shown(
    catalog: Catalog, store: Store, root: Path
) -> None:
    old = version(new_file_id(), OLD, "old")
    await put(catalog, store, old)
    await catalog.begin(store.id, "local", [version(old.file_id, NEW, "half")])
    await catalog.begin(store.id, "local", [version(new_file_id(), NEW, "half")])
    index = await follow(catalog, root)
    assert [words(index, store, word) for word in ("old", "half")] == [1, 0]


async def test_what_did_not_change_is_not_written_again(
    catalog: Catalog, store: Store, root: Path
) -> None:
    await put(catalog, store, version(new_file_id(), OLD, "one"))
    index = await follow(catalog, root)
    stamp = index.stamp(store.index_name)
    await catalog.bump_version(store.id)
    await follow(catalog, root)
    assert index.stamp(store.index_name) == stamp


async def test_a_file_that_was_cut_anew(catalog: Catalog, store: Store, root: Path) -> None:
    one = version(new_file_id(), OLD, "one", "two")
    await put(catalog, store, one)
    await follow(catalog, root)
    await put(catalog, store, version(one.file_id, OLD, "one two"))
    assert (await follow(catalog, root)).count(store.index_name) == 1
    again = version(one.file_id, OLD, "two one")
    await put(catalog, store, replace(again, chunking={"max_tokens": 512}))
    index = await follow(catalog, root)
    assert (
        index.passages(store.index_name, [again.passages[0].id])[again.passages[0].id]
        == (again.passages[0])
    )


async def test_an_index_that_was_lost_or_damaged(
    catalog: Catalog, store: Store, root: Path
) -> None:
    await put(catalog, store, version(new_file_id(), OLD, "one"))
    await follow(catalog, root)
    shutil.rmtree(root / store.index_name)
    assert words(await follow(catalog, root), store, "one") == 1
    (root / store.index_name / "meta.json").write_text("{}")
    assert words(await follow(catalog, root), store, "one") == 1


async def test_a_rebuilt_store(catalog: Catalog, store: Store, root: Path) -> None:
    one = version(new_file_id(), OLD, "one")
    await put(catalog, store, one)
    await follow(catalog, root)
    for generation in (1, 2):
        await catalog.stage(store.id, one.passages)
        file = RebuiltFile(one.file_id, OLD, 1, 3, {"generation": generation})
        await catalog.switch(store.id, generation, "other", 32, [file])
        index = await follow(catalog, root)
        now = await catalog.find_store("local", "docs")
        assert words(index, now, "one") == 1
    kept = [name for name in index_names(store, 3) if LexicalIndex(root).stamp(name) is not None]
    assert kept == [f"{store.id}.1", f"{store.id}.2"]


async def test_an_ingest_on_this_machine_is_left_alone(
    catalog: Catalog, store: Store, root: Path
) -> None:
    await put(catalog, store, version(new_file_id(), OLD, "one"))
    following = Following(catalog, root)
    now = await catalog.find_store("local", "docs")
    with LexicalWriter(root, store.index_name):
        await following.follow(now, 0)
        assert words(LexicalIndex(root), store, "one") == 0
    await following.follow(now, 0)
    assert words(LexicalIndex(root), store, "one") == 1


async def test_a_store_that_was_adopted_elsewhere(
    catalog: Catalog, store: Store, root: Path
) -> None:
    adopted = Adopted("http://127.0.0.1:1", "theirs", "e")
    await catalog.switch_adopted(store.id, 1, "e", 8, adopted)
    with pytest.raises(IndexMissing, match="another machine"):
        await follow(catalog, root)


async def test_looking_follows_every_store(catalog: Catalog, root: Path) -> None:
    made: list[tuple[Store, FileVersion]] = []
    for tenant in ("a", "b"):
        store = await catalog.create_store(tenant, "docs")
        one = version(new_file_id(), OLD, "one")
        await catalog.begin(store.id, tenant, [one])
        await catalog.complete(store.id, [one])
        made.append((store, one))
    following = Following(catalog, root)
    await following.look()
    assert [words(LexicalIndex(root), store, "one") for store, _ in made] == [1, 1]
    await following.close()


async def test_what_was_copied_of_a_deleted_store_goes(
    catalog: Catalog, store: Store, root: Path
) -> None:
    kept = await catalog.create_store("local", "kept")
    empty = await catalog.create_store("local", "empty")
    one = version(new_file_id(), OLD, "one")
    await put(catalog, store, one)
    await put(catalog, kept, version(new_file_id(), OLD, "two"))
    following = Following(catalog, root)
    await following.look()
    await catalog.stage(store.id, one.passages)
    await catalog.switch(store.id, 1, "other", 32, [RebuiltFile(one.file_id, OLD, 1, 3, {})])
    await following.look()
    assert names(root) >= set(index_names(store, 2))
    with LexicalWriter(root, f"vs_{'0' * 32}") as writer:  # another catalog's, not copied by us
        writer.commit()

    for gone in (store, empty):
        await catalog.delete_store(gone.id)
    await Following(catalog, root).look()  # as after a restart
    assert names(root) == {kept.index_name, f"vs_{'0' * 32}"}
    assert names(root.with_name("followed")) == {f"{kept.index_name}.json"}


async def test_the_look_out_outlives_whatever_fails(
    catalog: Catalog, store: Store, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await put(catalog, store, version(new_file_id(), OLD, "one"))
    await rename_table(catalog, "stores", "gone")
    following = Following(catalog, root)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(following.watch, 0)
            while "could not be looked at" not in caplog.text:
                await checkpoint()
            await rename_table(catalog, "gone", "stores")
            while LexicalIndex(root).stamp(store.index_name) is None:
                await checkpoint()
            group.cancel_scope.cancel()
    await following.close()

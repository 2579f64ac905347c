"""Files in stores: what is accepted, what is completed, what is gone."""

from __future__ import annotations

import pytest

from retrieval.types import Passage
from server.catalog import Catalog, FileNotFound, FileVersion, Store, StoreNotFound, new_file_id

pytestmark = pytest.mark.anyio

OLD, NEW = "a" * 64, "b" * 64


def version(
    file_id: str, digest: str, *texts: str, source: str | None = "/docs/a.md"
) -> FileVersion:
    passages = tuple(
        Passage(file_id, digest, number, "a.md", text, "Title", ("One", "Two"), number + 1)
        for number, text in enumerate(texts)
    )
    return FileVersion(file_id, "a.md", 10, digest, source, passages, {"max_tokens": 256})


async def put(catalog: Catalog, store: Store, one: FileVersion) -> int:
    await catalog.begin(store.id, store.tenant, [one])
    return await catalog.complete(store.id, [one])


@pytest.fixture
async def store(catalog: Catalog) -> Store:
    return await catalog.create_store("local", "docs")


async def test_a_file_is_in_progress_until_it_is_completed(catalog: Catalog, store: Store) -> None:
    one = version(new_file_id(), OLD, "héllo", "world")
    await catalog.begin(store.id, "local", [one])
    started = await catalog.membership(store.id, one.file_id)
    assert (started.status, started.indexed_hash, started.chunks) == ("in_progress", None, 0)
    assert (await catalog.store_totals(store.id)).files == 0

    assert await catalog.complete(store.id, [one]) == 1
    done = await catalog.membership(store.id, one.file_id)
    assert (done.status, done.indexed_hash, done.chunks) == ("completed", OLD, 2)
    assert done.usage_bytes == len("hélloworld".encode())
    assert done.source == "/docs/a.md"
    assert done.chunking == {"max_tokens": 256}
    assert (done.file.id, done.file.filename, done.file.bytes) == (one.file_id, "a.md", 10)
    totals = await catalog.store_totals(store.id)
    assert (totals.files, totals.passages, totals.usage_bytes) == (1, 2, 11)


async def test_a_passage_is_what_was_put_in(catalog: Catalog, store: Store) -> None:
    one = version(new_file_id(), OLD, "first", "second")
    await put(catalog, store, one)
    assert await catalog.passage(one.file_id, OLD[:16], 1, "local") == one.passages[1]
    assert await catalog.passage(one.file_id, OLD, 1, "local") == one.passages[1]


async def test_a_passage_that_is_not_there(catalog: Catalog, store: Store) -> None:
    one = version(new_file_id(), OLD, "first")
    await put(catalog, store, one)
    assert await catalog.passage(one.file_id, OLD[:16], 1, "local") is None
    assert await catalog.passage(one.file_id, NEW[:16], 0, "local") is None
    assert await catalog.passage("file-x", OLD[:16], 0, "local") is None
    assert await catalog.passage(one.file_id, OLD[:16], 0, "someone else") is None
    assert await catalog.passage(one.file_id, OLD[:15], 0, "local") is None


async def test_a_replaced_file_keeps_its_id_and_its_old_passages_until_the_switch(
    catalog: Catalog, store: Store
) -> None:
    old = version(new_file_id(), OLD, "old")
    new = version(old.file_id, NEW, "new")
    await put(catalog, store, old)
    await catalog.begin(store.id, "local", [new])
    assert await catalog.passage(old.file_id, OLD[:16], 0, "local") is not None
    assert await catalog.passage(old.file_id, NEW[:16], 0, "local") is not None

    await catalog.complete(store.id, [new])
    assert await catalog.passage(old.file_id, OLD[:16], 0, "local") is None
    assert await catalog.passage(old.file_id, NEW[:16], 0, "local") == new.passages[0]
    (member,) = await catalog.memberships(store.id)
    assert (member.indexed_hash, member.file.content_hash) == (NEW, NEW)


async def test_the_same_content_cut_anew_replaces_its_passages(
    catalog: Catalog, store: Store
) -> None:
    file_id = new_file_id()
    await put(catalog, store, version(file_id, OLD, "one", "two", "three"))
    await put(catalog, store, version(file_id, OLD, "one two three"))
    assert (await catalog.store_totals(store.id)).passages == 1
    assert await catalog.passage(file_id, OLD[:16], 1, "local") is None


async def test_a_removed_file_is_gone_with_its_passages(catalog: Catalog, store: Store) -> None:
    one = version(new_file_id(), OLD, "first")
    await put(catalog, store, one)
    assert await catalog.remove(store.id, [one.file_id]) == 2
    assert await catalog.memberships(store.id) == []
    assert await catalog.passage(one.file_id, OLD[:16], 0, "local") is None
    with pytest.raises(FileNotFound):
        await catalog.membership(store.id, one.file_id)


async def test_a_file_in_two_stores_outlives_one_of_them(catalog: Catalog, store: Store) -> None:
    other = await catalog.create_store("local", "other")
    one = version(new_file_id(), OLD, "first")
    await put(catalog, store, one)
    await put(catalog, other, one)
    await catalog.delete_store(store.id)
    assert await catalog.passage(one.file_id, OLD[:16], 0, "local") == one.passages[0]
    await catalog.remove(other.id, [one.file_id])
    assert await catalog.passage(one.file_id, OLD[:16], 0, "local") is None


async def test_reopened_files_are_no_longer_counted(catalog: Catalog, store: Store) -> None:
    one = version(new_file_id(), OLD, "first")
    await put(catalog, store, one)
    await catalog.reopen(store.id, [one.file_id])
    assert (await catalog.membership(store.id, one.file_id)).status == "in_progress"
    assert (await catalog.store_totals(store.id)).files == 0


async def test_files_of_an_absent_store(catalog: Catalog) -> None:
    with pytest.raises(StoreNotFound):
        await catalog.begin("vs_absent", "local", [version(new_file_id(), OLD, "x")])


async def test_completing_what_was_not_begun_changes_nothing(
    catalog: Catalog, store: Store
) -> None:
    with pytest.raises(FileNotFound):
        await catalog.complete(store.id, [version(new_file_id(), OLD, "x")])
    assert (await catalog.find_store("local", store.id)).version == 0

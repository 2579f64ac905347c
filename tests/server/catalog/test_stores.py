"""Stores: ids and names, versions, embedders."""

from __future__ import annotations

import asyncio
import re

import pytest

from server.catalog import (
    AmbiguousStore,
    Catalog,
    EmbedderConflict,
    InvalidStoreName,
    StoreNotFound,
    is_store_id,
)

pytestmark = pytest.mark.anyio


async def test_ids_are_valid_collection_names(catalog: Catalog) -> None:
    store = await catalog.create_store("local", "Größe & Gewicht @ v2")
    assert re.fullmatch(r"vs_[0-9a-f]{32}", store.id)
    assert is_store_id(store.id)
    assert not is_store_id("docs")


async def test_a_store_is_found_by_id_and_by_name(catalog: Catalog) -> None:
    made = await catalog.create_store("local", "docs", {"team": "a"})
    assert await catalog.find_store("local", "docs") == made
    assert await catalog.find_store("local", made.id) == made


async def test_an_id_wins_over_a_name(catalog: Catalog) -> None:
    first = await catalog.create_store("local", "docs")
    await catalog.create_store("local", first.id)
    assert await catalog.find_store("local", first.id) == first


async def test_equal_names_are_two_stores_and_ambiguous(catalog: Catalog) -> None:
    first = await catalog.create_store("local", "docs")
    second = await catalog.create_store("local", "docs")
    assert first.id != second.id
    with pytest.raises(AmbiguousStore) as raised:
        await catalog.find_store("local", "docs")
    assert set(raised.value.ids) == {first.id, second.id}
    assert first.id in str(raised.value)
    assert second.id in str(raised.value)


async def test_other_tenants_see_nothing(catalog: Catalog) -> None:
    mine = await catalog.create_store("mine", "docs")
    for ref in ("docs", mine.id):
        with pytest.raises(StoreNotFound, match=re.escape(ref)):
            await catalog.find_store("theirs", ref)
    assert await catalog.list_stores("theirs") == []
    assert await catalog.list_stores("mine") == [mine]


@pytest.mark.parametrize("name", ["none", "None", " none ", "a\x00b", "a\nb", "x" * 257])
async def test_reserved_and_unprintable_names_are_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(InvalidStoreName):
        await catalog.create_store("local", name)
    assert await catalog.list_stores("local") == []


async def test_the_version_and_the_activity_only_rise(catalog: Catalog) -> None:
    store = await catalog.create_store("local", "docs")
    activity = store.last_active_at
    for expected in (1, 2, 3):
        assert await catalog.bump_version(store.id) == expected
        now = await catalog.find_store("local", store.id)
        assert now.version == expected
        assert now.last_active_at > activity
        activity = now.last_active_at


async def test_concurrent_bumps_are_all_counted(catalog: Catalog) -> None:
    store = await catalog.create_store("local", "docs")
    versions = await asyncio.gather(*(catalog.bump_version(store.id) for _ in range(20)))
    assert sorted(versions) == list(range(1, 21))


async def test_bumping_what_is_not_there(catalog: Catalog) -> None:
    with pytest.raises(StoreNotFound):
        await catalog.bump_version("vs_absent")


async def test_an_embedder_is_recorded_once(catalog: Catalog) -> None:
    store = await catalog.create_store("local", "docs")
    assert store.embedder is None
    bound = await catalog.bind_embedder(store.id, "minilm", 384)
    assert (bound.embedder, bound.dimension) == ("minilm", 384)
    assert await catalog.bind_embedder(store.id, "minilm", 384) == bound
    with pytest.raises(EmbedderConflict) as raised:
        await catalog.bind_embedder(store.id, "bge", 512)
    assert "'minilm' (384" in str(raised.value)
    assert "'bge' (512" in str(raised.value)
    assert await catalog.find_store("local", store.id) == bound


async def test_deleting_a_store(catalog: Catalog) -> None:
    store = await catalog.create_store("local", "docs")
    await catalog.delete_store(store.id)
    with pytest.raises(StoreNotFound):
        await catalog.find_store("local", store.id)
    with pytest.raises(StoreNotFound):
        await catalog.delete_store(store.id)

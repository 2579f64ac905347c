"""sampling: the stores' sizes under bounded labels, and what other processes leave in the data directory."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from server.catalog import Adopted, Catalog, FileCount, Store, sqlite_url
from server.ingestion.lock import ingest_lock
from server.telemetry.exposition import exposition
from server.telemetry.index import IndexSizes, sizes, store_labels
from server.telemetry.ingests import IngestTotals, write_totals
from server.telemetry.metrics import Metrics, new_registry
from server.telemetry.sampling import Sampler, is_held

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Index:
    catalog: Catalog
    data_dir: Path


def store(number: int, name: str, tenant: str = "local", version: int = 1) -> Store:
    return Store(f"vs_{number}", tenant, name, {}, 0, 0, version, None, None)


def test_the_first_by_name_and_the_rest_together() -> None:
    stores = [store(1, "c", version=7), store(2, "a", version=5), store(3, "b")]
    counts = [
        FileCount("vs_1", "completed", 2, 20),
        FileCount("vs_2", "completed", 1, 10),
        FileCount("vs_2", "failed", 4, 3),
        FileCount("vs_3", "in_progress", 1, 9),
    ]
    seen = sizes(stores, counts, 1, {"local"}, "other")
    assert seen.passages == {"a": 10, "other": 20}
    assert seen.files == {
        ("a", "completed"): 1, ("a", "failed"): 4, ("other", "completed"): 2, ("other", "in_progress"): 1,
    }  # fmt: skip
    assert seen.versions == {"a": 5}
    assert set(sizes(stores, counts, 3, {"local"}, "other").passages) == {"a", "b", "c"}
    assert sizes(stores, counts, 0, {"local"}, "other").passages == {"other": 30}
    assert sizes([], [], 20, {"local"}, "other") == IndexSizes()


def test_names_that_say_too_little_or_too_much_are_ids() -> None:
    twins = [store(1, "twin"), store(2, "twin"), store(3, ""), store(4, "other"), store(5, "docs")]
    labels = store_labels(twins, {"local"}, "other")
    assert set(labels.values()) == {"vs_1", "vs_2", "vs_3", "vs_4", "docs"}


@pytest.mark.parametrize(
    ("tenants", "readers"),
    [
        (("acme", "globex"), {"acme"}),
        (("acme", "acme"), {"acme", "globex"}),  # who has no store yet reads the page all the same
        (("acme", "acme"), {"local"}),
        (("local", "acme"), {"acme"}),
    ],
)
def test_where_there_are_several_tenants_all_are_ids(
    tenants: tuple[str, str], readers: set[str]
) -> None:
    stores = [store(1, "acme-merger", tenants[0]), store(2, "docs", tenants[1])]
    assert store_labels(stores, readers, "other") == {"vs_1": "vs_1", "vs_2": "vs_2"}
    seen = sizes(stores, [], 9, readers, "other")
    assert set(seen.passages) == set(seen.versions) == {"vs_1", "vs_2"}


def test_one_tenant_with_its_key_sees_names() -> None:
    assert store_labels([store(1, "docs", "acme")], {"acme"}, "other") == {"vs_1": "docs"}


def test_an_adopted_store_is_as_large_as_its_collection() -> None:
    adopted = Adopted("http://c", "theirs", "e", rows=12, passages=10, files=3)
    seen = sizes([replace(store(1, "theirs"), adopted=adopted)], [], 9, {"local"}, "other")
    assert seen.passages == {"theirs": 10}
    assert seen.files == {("theirs", "completed"): 3}


async def test_a_lock_is_seen_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "ingest.lock"
    assert not is_held(lock)
    async with ingest_lock(lock, 1.0, lambda _: None):
        assert is_held(lock)
    assert not is_held(lock)


async def test_the_page_shows_what_was_sampled(tmp_path: Path) -> None:
    metrics = Metrics(new_registry())
    write_totals(tmp_path, IngestTotals().plus("ok", {"added": 2}, {"embed": [0.2, 40.0]}, 99.0))
    async with await Catalog.open(sqlite_url(tmp_path / "catalog.db")) as catalog:
        await catalog.create_store("local", "docs")
        sampler = Sampler(metrics, lambda: nullcontext(Index(catalog, tmp_path)), 20, {"local"})
        async with ingest_lock(tmp_path / "ingest.lock", 1.0, lambda _: None):
            await sampler.sample()
    page = exposition(metrics.registry, "")[0].decode()
    for line in (
        'groundwire_index_passages{store="docs"} 0.0',
        'groundwire_index_store_version{store="docs"} 0.0',
        'groundwire_ingest_runs_total{outcome="ok"} 1.0',
        'groundwire_ingest_runs_total{outcome="failed"} 0.0',
        'groundwire_ingest_files_total{outcome="added"} 2.0',
        'groundwire_ingest_step_duration_seconds_bucket{le="0.25",step="embed"} 1.0',
        'groundwire_ingest_step_duration_seconds_bucket{le="+Inf",step="embed"} 2.0',
        'groundwire_ingest_step_duration_seconds_sum{step="embed"} 40.2',
        "groundwire_ingest_last_success_timestamp_seconds 99.0",
        "groundwire_ingest_running 1.0",
    ):
        assert line in page.splitlines()


async def test_of_a_published_index_the_totals_are_beside_the_versions(tmp_path: Path) -> None:
    metrics = Metrics(new_registry())
    version, published = tmp_path / "copy", tmp_path / "published"
    for each in (version, published):
        each.mkdir()
    write_totals(published, IngestTotals().plus("failed", {}, {}, 99.0))
    async with await Catalog.open(sqlite_url(version / "catalog.db")) as catalog:
        index = Index(catalog, version)
        await Sampler(metrics, lambda: nullcontext(index), 20, {"local"}, published).sample()
    page = exposition(metrics.registry, "")[0].decode()
    assert 'groundwire_ingest_runs_total{outcome="failed"} 1.0' in page.splitlines()


async def test_a_catalog_that_is_away_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = anyio.Event()
    count = 0

    def away() -> AbstractContextManager[Index]:
        nonlocal count
        count += 1
        if count == 3:
            tries.set()
        raise OSError("away")

    caplog.set_level(logging.WARNING, "server.telemetry.sampling")
    sampler = Sampler(Metrics(new_registry()), away, 20, {"local"})
    async with anyio.create_task_group() as group:
        group.start_soon(sampler.watch, 0.001)
        with anyio.fail_after(10):
            await tries.wait()
        group.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "the index's metrics cannot be read: away"
    ]

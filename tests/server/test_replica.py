"""A server's copies of what is published: kept apart, removed again, looked for even when a mount is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.lexical import LexicalIndex, LexicalWriter
from server.published import InUse, publish
from server.replica import open_copies, pause_seconds
from server.retriever import VersionedStamps
from server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", published_dir=tmp_path / "published")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "published").mkdir()
    (tmp_path / "source" / "catalog.db").write_text("one")
    publish(tmp_path / "source", tmp_path / "published")
    return tmp_path / "published"


async def test_each_copy_is_a_folder_of_its_own_and_goes_again(
    settings: Settings, published: Path
) -> None:
    async with open_copies(settings, published, None) as copies:
        async with copies.taken() as (version, first), copies.taken() as (again, second):
            assert (version, again) == (1, 1)
            assert first.data_dir != second.data_dir
            assert (first.data_dir / "catalog.db").read_text() == "one"
            assert first.resolved_catalog_url.endswith(f"{first.data_dir}/catalog.db")
        assert not list(settings.data_dir.glob("copy-*"))


async def test_nothing_published_is_an_empty_index(settings: Settings, tmp_path: Path) -> None:
    async with open_copies(settings, tmp_path / "missing", None) as copies:
        assert await copies.current() == 0
        async with copies.taken() as (version, here):
            assert version == 0
            assert list(here.data_dir.iterdir()) == []


async def test_a_data_directory_has_one_server_and_no_earlier_copies(
    settings: Settings, published: Path
) -> None:
    (settings.data_dir / "copy-7" / "chroma").mkdir(parents=True)
    async with open_copies(settings, published, None):
        assert not list(settings.data_dir.glob("copy-*"))
        with pytest.raises(InUse, match="data directory"):
            async with open_copies(settings, published, None):
                pass


async def test_the_mount_is_refreshed_before_each_look_and_may_fail(
    settings: Settings, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refreshed: list[str] = []

    async def refresh() -> None:
        refreshed.append("tried")
        if len(refreshed) == 2:
            raise RuntimeError("there are open files preventing the operation")
        publish(tmp_path / "source", published)

    async with open_copies(settings, published, refresh) as copies:
        assert len(refreshed) == 1
        assert await copies.current() == 2
        assert "open files" in caplog.text
        assert await copies.current() == 3


def test_two_versions_never_share_what_was_remembered(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path)
    assert VersionedStamps(1, index).stamp("vs_1") is None
    with LexicalWriter(tmp_path, "vs_1") as writer:
        writer.commit()
    assert VersionedStamps(1, index).stamp("vs_1") != VersionedStamps(2, index).stamp("vs_1")
    assert VersionedStamps(1, index).stamp("vs_1") == VersionedStamps(1, index).stamp("vs_1")


def test_the_pause_grows_with_each_failure_and_has_an_end() -> None:
    """The alert looks back over a quarter of an hour: there must be a try within it."""
    assert [pause_seconds(10, failures) for failures in range(4)] == [10, 20, 40, 80]
    assert pause_seconds(10, 5000) == 300
    assert pause_seconds(600, 0) == pause_seconds(600, 3) == 600

"""Which files a PATH means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.ingestion.walk import printable, walk


def supported(name: str) -> bool:
    return name.endswith(".md")


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def test_a_folder_is_walked_in_order_with_names_below_it(tmp_path: Path) -> None:
    write(tmp_path, "b.md", "a/2.md", "a/1.md", "c.bin")
    found = walk([tmp_path], supported)
    assert [source.name for source in found.sources] == ["a/1.md", "a/2.md", "b.md"]
    assert found.sources[0].key == str(tmp_path.resolve() / "a/1.md")
    assert found.skipped == 1
    assert found.problems == ()


def test_hidden_and_machine_made_folders_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, ".git/a.md", ".b.md", "node_modules/c.md", "x/__pycache__/d.md", "e.md")
    assert [source.name for source in walk([tmp_path], supported).sources] == ["e.md"]


def test_a_path_that_is_named_is_taken_whatever_it_is(tmp_path: Path) -> None:
    write(tmp_path, ".hidden/a.md", "b.bin")
    found = walk([tmp_path / ".hidden", tmp_path / "b.bin"], supported)
    assert [source.name for source in found.sources] == ["a.md", "b.bin"]


def test_overlapping_paths_and_links_give_each_file_once(tmp_path: Path) -> None:
    write(tmp_path, "docs/sub/a.md")
    (tmp_path / "docs/again.md").symlink_to(tmp_path / "docs/sub/a.md")
    (tmp_path / "alias").symlink_to(tmp_path / "docs")
    found = walk([tmp_path / "docs", tmp_path / "docs/sub", tmp_path / "alias"], supported)
    assert [source.key for source in found.sources] == [str(tmp_path.resolve() / "docs/sub/a.md")]


def test_loops_of_links_end(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c.md")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    found = walk([tmp_path], supported)
    assert [source.name for source in found.sources] == ["a/b/c.md"]
    assert found.problems == ()


def test_a_link_to_itself_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "self.md").symlink_to(tmp_path / "self.md")
    found = walk([tmp_path], supported)
    assert found.sources == ()
    assert [name for name, _ in found.problems] == ["self.md"]


def test_a_dangling_link_to_a_document_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "lost.md").symlink_to(tmp_path / "nowhere.md")
    (tmp_path / "lost.bin").symlink_to(tmp_path / "nowhere.bin")
    assert walk([tmp_path], supported).problems == (("lost.md", "a symbolic link to nothing"),)


def test_missing_paths_are_told(tmp_path: Path) -> None:
    found = walk([tmp_path / "absent"], supported)
    assert found.missing == (str(tmp_path.resolve() / "absent"),)
    assert found.sources == ()


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    assert walk([tmp_path], supported).sources == ()


def test_excluded_folders_are_not_entered(tmp_path: Path) -> None:
    write(tmp_path, "data/a.md", "b.md")
    found = walk([tmp_path], supported, exclude=[tmp_path / "data", tmp_path / "absent"])
    assert [source.name for source in found.sources] == ["b.md"]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.md")
    write(tmp_path, name)
    (source,) = walk([tmp_path], supported).sources
    assert source.name == r"caf\xe9.md"
    assert source.path.read_bytes()
    assert printable("plain") == "plain"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, "locked/a.md", "b.md")
    (tmp_path / "locked").chmod(0)
    found = walk([tmp_path], supported)
    (tmp_path / "locked").chmod(0o700)
    assert [source.name for source in found.sources] == ["b.md"]
    assert found.problems == (("locked", "Permission denied"),)

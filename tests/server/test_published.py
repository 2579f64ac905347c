"""Published versions as files: copied whole, one after the other, whatever happens to the writer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from server.published import (
    InUse,
    PublishedError,
    check,
    current,
    folder,
    publish,
    take,
    writer_lock,
)

ROOT = Path(__file__).parents[2]
FILES = ("catalog.db", "secret", "chroma/chroma.sqlite3", "lexical/vs_1/meta.json", "blobs/ab/abcd")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", "1")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


def fill(data: Path, text: str) -> Path:
    for name in FILES:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    return data


def names(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def texts(directory: Path) -> set[str]:
    return {(directory / name).read_text() for name in FILES if not name.startswith("blobs")}


def test_versions_follow_each_other_and_two_are_kept(
    data: Path, published: Path, tmp_path: Path
) -> None:
    for number in range(1, 13):
        assert publish(fill(data, str(number)), published) == number
    assert {path.name for path in published.iterdir()} == {"CURRENT", "v-11", "v-12"}
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "stale").touch()
    assert take(published, taken) == 12
    assert names(taken) == {*FILES, "MANIFEST"}
    assert texts(taken) == {"12"}


def test_numbers_grow_after_a_step_back(data: Path, published: Path) -> None:
    for _ in range(3):
        publish(data, published)
    (published / "CURRENT").write_text("v-2\n")
    assert publish(data, published) == 4
    assert {path.name for path in published.iterdir()} == {"CURRENT", "v-2", "v-4"}


def test_what_belongs_to_running_processes_is_not_published(data: Path, published: Path) -> None:
    for name in (
        "chroma.json",
        ".chroma.json.7",
        "chroma.log",
        "chroma-died.log",
        "chroma.lock",
        "ingest.lock",
    ):
        (data / name).touch()
    (data / "lexical/vs_1/.tantivy-writer.lock").touch()
    (data / "lexical/vs_1/.managed.json").touch()
    publish(data, published)
    assert names(published / "v-1") == {*FILES, "MANIFEST", "lexical/vs_1/.managed.json"}


def test_servers_leave_the_bytes_of_the_files_out(
    data: Path, published: Path, tmp_path: Path
) -> None:
    publish(data, published)
    take(published, tmp_path / "taken", leave_out=("blobs",))
    assert names(tmp_path / "taken") == {*FILES, "MANIFEST"} - {"blobs/ab/abcd"}


def test_bytes_that_were_published_before_are_linked_and_nothing_else(
    data: Path, published: Path
) -> None:
    publish(data, published)
    publish(data, published)
    same = {name: (published / "v-1" / name).samefile(published / "v-2" / name) for name in FILES}
    assert same == {name: name.startswith("blobs/") for name in FILES}


def test_a_file_that_vanishes_meanwhile_makes_no_version(data: Path, published: Path) -> None:
    publish(data, published)
    (data / "lexical/vs_1/gone").symlink_to("nowhere")  # listed, and not there
    with pytest.raises(FileNotFoundError, match="gone"):
        publish(data, published)
    assert current(published) == 1


def test_nothing_published_is_nothing_taken(published: Path, tmp_path: Path) -> None:
    assert take(published, tmp_path / "taken") is None
    assert take(tmp_path / "missing", tmp_path / "taken") is None
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("harm", ["cut off", "gone", "no manifest", "no version", "no name"])
def test_what_is_not_whole_is_refused(
    data: Path, published: Path, tmp_path: Path, harm: str
) -> None:
    publish(data, published)
    version = published / "v-1"
    if harm == "cut off":
        (version / "catalog.db").write_text("")
    elif harm == "gone":
        (version / "chroma/chroma.sqlite3").unlink()
    elif harm == "no manifest":
        (version / "MANIFEST").unlink()
    else:
        (published / "CURRENT").write_text("v-7" if harm == "no version" else "../etc")
    with pytest.raises((PublishedError, OSError)) as raised:
        take(published, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert {"cut off": "catalog.db", "gone": "chroma.sqlite3", "no name": "../etc"}.get(
        harm, "v-"
    ) in str(raised.value)


def test_a_second_writer_is_refused_with_the_first_one_s_name(published: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(published)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=str(holder.pid)), writer_lock(published):
            pass
        holder.kill()
    with writer_lock(published):  # a dead writer holds nothing
        pass


_HOLD = """
import sys
from pathlib import Path
from server.published import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_copy_is_of_one_version_while_versions_come_and_go(
    data: Path, published: Path, tmp_path: Path
) -> None:
    """Each version is there for a moment only: most copies lose theirs on the way."""
    for name in range(20):
        (data / "lexical" / f"{name}.store").write_text("x")
    publish(data, published)
    done = threading.Event()

    def write() -> None:
        number = 1
        while not done.is_set():
            number += 1
            publish(fill(data, str(number)), published)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken = [0]
        while len(set(taken)) < 6:
            version = take(published, tmp_path / "taken")
            assert version is not None
            assert texts(tmp_path / "taken") == {str(version)}
            taken.append(version)
        assert taken == sorted(taken)
    finally:
        done.set()
        writer.join()


def killed_writers(*args: str | Path) -> list[Any]:
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "server" / "publish_killed.py", *args],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_writer_killed_after_a_step_back_leaves_no_number_free(
    data: Path, published: Path
) -> None:
    children = killed_writers(data, published, "stepped-back")
    assert len(children) > 40
    assert children[-1] == [None, 4]
    assert {number for _, number in children} == {3, 4}


def test_a_writer_killed_anywhere_leaves_a_whole_version(data: Path, published: Path) -> None:
    publish(data, published)
    children = killed_writers(data, published)
    assert len(children) > 40
    versions = [version for _, version, _ in children]
    assert versions == sorted(versions)
    # Some were killed behind the switch: their version is current. And the one that lived has published.
    assert any(killed is not None and found == str(killed) for killed, _, found in children)
    assert children[-1][0] is None
    assert children[-1][2] == str(len(children))
    last = children[-1][1]
    assert current(published) == last
    check(folder(published, last))
    kept = {path.name for path in published.iterdir()} - {"writer.lock"}
    assert len(kept) == 3
    assert {"CURRENT", f"v-{last}"} < kept

"""`groundwire ingest`, `search` and `stores` with the bundled embedder and a Chroma of their own."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from retrieval.search import connect
from server.catalog import Catalog
from server.cli import ingest, reindex, search, stores
from server.cli.local import clean
from server.settings import Settings

MAIN = "import sys; from server.cli import main; sys.exit(main())"


def run(settings: Settings, *words: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for module in (ingest, reindex, search, stores):
        module.add_parser(subparsers).set_defaults(run=module.run)
    args = parser.parse_args(words)
    status: int = args.run(args, settings)
    return status


def start(settings: Settings, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, *words, "--data-dir", str(settings.data_dir)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=_interruptible
    )


def _interruptible() -> None:
    """A background job of a shell ignores SIGINT, and so would every child of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    root.mkdir()
    (root / "zebra.md").write_text("# Zebras\n\nThe quagga was a zebra of the Cape of Good Hope.")
    (root / "tea.md").write_text("# Tea\n\nGreen tea is steeped at eighty degrees.")
    return root


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_ingest_then_search(
    settings: Settings, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, "ingest", str(docs), "--store", "animals", "--json") == 0
    report = said(capsys)
    assert (report["added"], report["failed"], report["store_name"]) == (2, [], "animals")

    question = ("search", "Which zebra died out?", "--store", "animals")
    assert run(settings, *question, "--top-k", "1", "--json") == 0
    found = said(capsys)
    (hit,) = found["hits"]
    assert hit["filename"] == "zebra.md"
    assert set(hit["scores"]) == {"search", "lexical"}
    assert hit["scores"]["search"] > 0.3
    assert {"embed", "search", "lexical", "fuse"} <= set(found["timings_ms"])

    assert run(settings, *question) == 0
    out = capsys.readouterr().out
    assert "[1] zebra.md" in out
    assert "quagga" in out
    assert " ms" in out

    assert run(settings, "stores", "--json") == 0
    (store,) = said(capsys)
    assert (store["name"], store["files"], store["passages"]) == ("animals", 2, 2)
    assert run(settings, "stores") == 0
    assert store["id"] in capsys.readouterr().out


def test_a_published_index_is_read_as_it_is_and_not_rebuilt(
    settings: Settings, docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = settings.model_copy(update={"published_dir": tmp_path / "published"})
    assert run(published, "stores") == 1
    assert "nothing is published in" in capsys.readouterr().err

    assert run(published, "ingest", str(docs), "--store", "animals", "--json") == 0
    assert said(capsys)["published_version"] == 1
    assert run(published, "stores", "--json") == 0
    (store,) = said(capsys)
    assert (store["name"], store["files"]) == ("animals", 2)
    assert run(published, "search", "Which zebra died out?", "--store", "animals", "--json") == 0
    assert said(capsys)["hits"][0]["filename"] == "zebra.md"

    assert run(published, "reindex", "--all") == 1
    assert (
        "versions never change: `groundwire ingest` makes the next one" in capsys.readouterr().err
    )
    assert [path.name for path in settings.data_dir.iterdir()] == []


def test_a_tenant_s_store_is_its_own(
    settings: Settings, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = ("ingest", str(docs), "--store", "animals", "--json")
    theirs = (*ours, "--tenant", "acme")
    assert run(settings, *ours) == 0
    local = said(capsys)["store_id"]
    assert run(settings, *theirs) == 0
    acme = said(capsys)
    assert acme["added"] == 2
    assert acme["store_id"] != local
    assert run(settings, "stores", "--json") == 0
    assert [store["id"] for store in said(capsys)] == [local]
    assert run(settings, "reindex", acme["store_id"], "--tenant", "acme", "--quiet") == 0


def test_a_file_that_cannot_be_read_is_named_and_gives_status_1(
    settings: Settings, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (docs / "broken.pdf").write_bytes(b"this is no PDF")
    assert run(settings, "ingest", str(docs), "--store", "docs") == 1
    captured = capsys.readouterr()
    assert "failed broken.pdf: " in captured.err
    assert "added tea.md (2/3)" in captured.err
    assert "failed" in captured.out

    assert run(settings, "ingest", str(docs), "--store", "docs", "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("failed broken.pdf: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("ingest", "."), "which store?"),
        (("ingest", ".", "--store", "none"), "reserved"),
        (("ingest", ".", "--store", "vs_" + "0" * 32), "no vector store has the id or name"),
        (("reindex", "absent"), "no vector store has the id or name 'absent'"),
        (("search", "x"), "which store?"),
        (("search", "x", "--store", "absent"), "no vector store has the id or name 'absent'"),
        (("search", "  ", "--store", "absent"), "the question is empty"),
        (("search", "x", "--store", "absent", "--top-k", "0"), "--top-k must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(
    settings: Settings, words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, *words) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


@pytest.mark.anyio
async def test_ingest_works_while_another_process_owns_the_directory(
    settings: Settings, docs: Path
) -> None:
    async with connect(settings.data_dir) as chroma:
        assert chroma.owned
        process = start(settings, "ingest", str(docs), "--store", "docs", "--json")
        out, err = await anyio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0, err
        assert await chroma.store.count(json.loads(out)["store_id"]) == 2


def test_ctrl_c_stops_with_a_word_and_the_next_run_goes_on(
    settings: Settings, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        words = "\n\n".join(f"Walrus {number} {index} swims." * 20 for index in range(12))
        (docs / f"{number:02}.md").write_text(words)
    process = start(settings, "ingest", str(docs), "--store", "docs")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("added"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command goes on from here" in err

    assert run(settings, "ingest", str(docs), "--store", "docs", "--json", "--quiet") == 0
    report = said(capsys)
    assert report["unchanged"] > 0
    assert report["added"] > 0
    assert report["unchanged"] + report["added"] == 14


def test_a_terminal_gets_a_progress_bar(settings: Settings, docs: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(settings, "ingest", str(docs), "--store", "docs", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the terminal's other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"2/2" in shown
    assert b"2 chunks" in shown


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b[31mb\x07\nc") == "a\ufffd[31mb\ufffd\nc"


@pytest.mark.anyio
async def test_searching_with_another_embedder_is_refused(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with await Catalog.open(settings.resolved_catalog_url) as catalog:
        store = await catalog.create_store("local", "docs")
        await catalog.bind_embedder(store.id, "another", 3)
    status = await anyio.to_thread.run_sync(run, settings, "search", "x", "--store", "docs")
    assert status == 1
    assert "'another' (3 dimensions)" in capsys.readouterr().err


def test_reindex_rebuilds_with_the_settings_of_now(
    settings: Settings, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, "ingest", str(docs), "--store", "docs", "--quiet") == 0
    finer = settings.model_copy(update={"chunk_tokens": 8})
    capsys.readouterr()
    assert run(finer, "reindex", "--all", "--json") == 0
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)
    assert (report["store_name"], report["files"], report["failed"]) == ("docs", 2, [])
    assert report["chunks"] > 2
    assert "replaced tea.md" in captured.err
    assert run(settings, "search", "Which zebra died out?", "--store", "docs") == 0
    assert "[1] zebra.md" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("docs", "--all")])
def test_reindex_wants_stores_or_all(
    settings: Settings, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, "reindex", *words) == 2
    assert "name the stores, or say --all" in capsys.readouterr().err

"""`groundwire canary` with the bundled embedder and a Chroma of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from server.catalog import Catalog, Store, sqlite_url
from server.cli import canary
from server.embedding import open_embedder
from server.ingestion import IngestJob, publish_paths
from server.settings import Settings

DOCUMENTS = {
    "zebra.md": "# Zebras\n\n## The Cape\n\nThe quagga was a zebra of the Cape of Good Hope.",
    "tea.md": "# Tea\n\n## Green tea\n\nGreen tea is steeped at eighty degrees for two minutes.",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two files, which serves as a data directory and as a published one."""
    root = tmp_path_factory.mktemp("canary")
    (root / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (root / "docs" / name).write_text(text)
    embedder = open_embedder(Settings(), lambda _: None)
    job = IngestJob((root / "docs",), "docs", root / "work", "unused")
    theirs = replace(job, store="their-docs", tenant="acme")
    for each in (job, theirs):
        asyncio.run(publish_paths(each, embedder, root / "published"))
    return root / "published"


@pytest.fixture
def settings(published: Path, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data", published_dir=published, canary_file=tmp_path / "golden.jsonl"
    )


def run(settings: Settings, *words: str) -> int:
    parser = argparse.ArgumentParser()
    canary.add_parser(parser.add_subparsers())
    return canary.run(parser.parse_args(["canary", *words]), settings)


def test_what_is_proposed_is_found_and_what_is_not_is_named(
    settings: Settings, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(published.rglob("*"))
    assert run(settings, "init", "--store", "docs", "--questions", "2") == 0
    captured = capsys.readouterr()
    assert "2 questions about 'docs'" in captured.err
    proposed = [json.loads(line) for line in captured.out.splitlines()]
    assert {row["file"] for row in proposed} == set(DOCUMENTS)

    wrong = [
        {"text": "Which zebra died out?", "file": "tea.md"},
        {"text": "When does the ferry leave?", "file": "ferry.md"},
    ]
    path = settings.canary_file
    assert path is not None
    path.write_text("\n".join(map(json.dumps, [*proposed, *wrong])))
    one = settings.model_copy(update={"top_k": 1, "canary_store": "docs"})
    assert run(one, "check") == 0
    out = capsys.readouterr().out
    assert "docs: 4 questions  recall@1 0.500" in out
    assert "rank 2   Which zebra died out?  (tea.md)" in out
    assert "gone     When does the ferry leave?  (ferry.md)" in out
    assert proposed[0]["text"] not in out
    assert sorted(published.rglob("*")) == before  # nobody works in a published version

    strict = one.model_copy(update={"canary_min_recall": 0.9})
    assert run(strict, "check", "--json") == 1
    captured = capsys.readouterr()
    assert "recall@4 0.750 is below canary_min_recall (0.9)" in captured.err
    found = json.loads(captured.out)
    assert (found["recall@4"], found["mrr@10"]) == (0.75, 0.625)
    assert (found["found"], found["missed"], found["gone"]) == (3, 0, 1)
    assert [row["rank"] for row in found["questions"]] == [1, 1, 2, None]


async def of_acme(published: Path) -> Store:
    current = published / (published / "CURRENT").read_text().strip()
    async with await Catalog.open(sqlite_url(current / "catalog.db")) as catalog:
        return await catalog.find_store("acme", "their-docs")


def test_another_tenant_s_store_is_named_by_its_id_as_the_server_takes_it(
    settings: Settings, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)  # to open a catalog leaves files beside it
    store = asyncio.run(of_acme(copy))
    assert run(settings, "init", "--store", store.id) == 0
    path = settings.canary_file
    assert path is not None
    path.write_text(capsys.readouterr().out)
    assert run(settings.model_copy(update={"canary_store": store.id}), "check") == 0
    assert "their-docs: 2 questions  recall@1 1.000" in capsys.readouterr().out
    assert run(settings, "init", "--store", "their-docs") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("init",), "which store?"),
        (("init", "--store", "absent"), "no vector store has the id or name 'absent'"),
        (("init", "--store", "docs", "--questions", "0"), "--questions must be at least 1"),
        (("check", "--store", "docs"), "golden.jsonl: No such file"),
    ],
)
def test_what_cannot_be_done_is_said(
    settings: Settings, words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, *words) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


def test_where_nothing_is_published_or_asked(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = settings.model_copy(update={"published_dir": tmp_path, "canary_file": None})
    assert run(empty, "init", "--store", "docs") == 1
    assert "nothing is published in" in capsys.readouterr().err
    assert run(empty, "check", "--store", "docs") == 1
    assert "which questions?" in capsys.readouterr().err

"""BM25, passage lookup, and what readers see of writers: tried on real indexes on disk."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import lexical
from retrieval.errors import DataDirectoryInUse, IndexMissing
from retrieval.lexical import (
    QUICK_CHARACTERS,
    QUICK_HITS,
    Keywords,
    LexicalIndex,
    LexicalWriter,
    drop,
)
from retrieval.types import Passage

HASH = "0123456789abcdef" * 4


def passage(text: str, chunk: int = 0, file_id: str = "file-a", **fields: object) -> Passage:
    return Passage(file_id, HASH, chunk, **{"filename": "a.txt", "text": text, **fields})  # type: ignore[arg-type]


def write(root: Path, *passages: Passage, store: str = "s") -> None:
    with LexicalWriter(root, store) as writer:
        for file_id in dict.fromkeys(p.file_id for p in passages):
            writer.replace_file(file_id, [p for p in passages if p.file_id == file_id])
        writer.commit()


def texts(root: Path, query: str, k: int = 10) -> list[str]:
    index = LexicalIndex(root)
    hits = index.search("s", query, k)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    found = index.passages("s", [hit.passage_id for hit in hits])
    assert list(found) == [hit.passage_id for hit in hits]
    return [p.text for p in found.values()]


def test_words_match_by_stem_case_and_accent(tmp_path: Path) -> None:
    write(tmp_path, passage("Running dogs", 0), passage("A café of quokkas", 1))
    assert texts(tmp_path, "did the DOG run?") == ["Running dogs"]
    assert texts(tmp_path, "cafe") == ["A café of quokkas"]
    assert texts(tmp_path, "of the a") == []
    assert texts(tmp_path, "quokka") == texts(tmp_path, "QUOKKAS quokka quokka")


def test_the_passage_that_says_more_of_the_query_is_first(tmp_path: Path) -> None:
    write(tmp_path, passage("blue whale", 0), passage("blue whale song", 1), passage("song", 2))
    assert texts(tmp_path, "blue whale song")[0] == "blue whale song"
    assert len(texts(tmp_path, "blue whale song", k=2)) == 2


def test_titles_file_names_and_headings_are_found_but_weigh_less(tmp_path: Path) -> None:
    write(
        tmp_path,
        passage("holiday rules are here", 0),
        passage("unrelated one two", 1, title="Holiday"),
        passage("unrelated words here", 2, headings=("Leave", "Holiday")),
        passage("nothing to see", 3, filename="holidayRules_2024.pdf"),
    )
    found = texts(tmp_path, "holiday")
    assert found[0] == "holiday rules are here"
    assert set(found[1:]) == {"unrelated one two", "unrelated words here", "nothing to see"}


def test_containing_gives_every_passage_with_all_the_words(tmp_path: Path) -> None:
    name = "reports/annualReport_2024 (final).pdf"
    write(
        tmp_path,
        passage("The whale sings", 1, filename=name),
        passage("A whale song", 0, filename=name),
        passage("annual report 2024 final pdf", 2, filename="notes.txt"),
    )
    index = LexicalIndex(tmp_path)

    def found(words: str, field: Literal["text", "title"]) -> list[str]:
        return [p.text for p in index.containing("s", words, field)]

    assert found(name, "title") == ["A whale song", "The whale sings"]
    assert found("annualReport_2024 (final).pdf", "title") == found(name, "title")
    assert found("annualReport_2025 (final).pdf", "title") == []
    assert found("WHALES, song!", "text") == ["A whale song"]
    assert len(found("of the", "text")) == 3
    assert index.containing("absent", "whale", "text") == []


def test_a_passage_comes_back_exactly(tmp_path: Path) -> None:
    original = passage(
        'tabs\t"quotes"\n\n 🦘 \x07 end ',
        7,
        filename="re\udcffport.pdf",
        title="Ünï",
        headings=("a", "b c"),
        page=12,
    )
    write(tmp_path, original, passage("other", 8))
    index = LexicalIndex(tmp_path)
    assert index.passages("s", ["nope", original.id, original.id]) == {original.id: original}
    assert index.passages("s", []) == {}
    assert index.count("s") == 2


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text() | st.from_regex(r'[+\-"():^~*\[\]{}\\/ANDORNOTtext]{0,30}'))
def test_any_text_is_a_query(query: str, shared_root: Path) -> None:
    assert len(LexicalIndex(shared_root).search("s", query, 5)) <= 5


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lexical")
    write(root, *(passage(f"word{n} and text", n) for n in range(20)))
    return root


def test_operators_are_words(tmp_path: Path) -> None:
    write(tmp_path, passage("cats", 0), passage("dogs", 1))
    assert set(texts(tmp_path, "cats AND dogs -cats text:(cats")) == {"cats", "dogs"}


def test_only_the_first_terms_of_a_huge_query_count(tmp_path: Path) -> None:
    write(tmp_path, passage("needle"))
    early = " ".join(f"w{n}" for n in range(lexical.MAX_QUERY_TERMS - 1))
    assert texts(tmp_path, f"{early} needle") == ["needle"]
    assert texts(tmp_path, f"{early} again needle") == []
    assert texts(tmp_path, f"{early} w1 w1 needle") == ["needle"]
    assert texts(tmp_path, "same " * lexical.MAX_QUERY_CHARS + "needle") == []


def test_an_absent_store_is_empty_and_reading_creates_nothing(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "root")
    assert index.search("s", "x", 3) == []
    assert index.passages("s", ["x"]) == {}
    assert index.count("s") == 0
    assert not (tmp_path / "root").exists()
    write(tmp_path, passage("here"))
    assert LexicalIndex(tmp_path).search("s", "here", 0) == []


@pytest.mark.parametrize("store", ["", "../s", "a/b", ".hidden", "s\n"])
def test_a_store_id_is_never_a_path(tmp_path: Path, store: str) -> None:
    with pytest.raises(ValueError, match="no store id"):
        LexicalIndex(tmp_path).search(store, "x", 1)
    with pytest.raises(ValueError, match="no store id"):
        LexicalWriter(tmp_path, store)


def test_replacing_a_file_is_one_switch(tmp_path: Path) -> None:
    write(tmp_path, passage("old apple", 0), passage("old pear", 1), passage("kept", 0, "file-b"))
    index = LexicalIndex(tmp_path)
    with LexicalWriter(tmp_path, "s") as writer:
        writer.replace_file("file-a", [passage("new apple", 0)])
        assert [h.passage_id for h in index.search("s", "old", 9)] != []
        assert index.search("s", "new", 9) == []
        writer.commit()
        assert index.search("s", "old", 9) == []
        assert len(index.search("s", "new", 9)) == 1
    assert index.count("s") == 2
    with LexicalWriter(tmp_path, "s") as writer:
        writer.delete_file("file-a")
        writer.commit()
    assert index.search("s", "apple", 9) == []
    assert len(index.search("s", "kept", 9)) == 1


def test_leaving_without_commit_drops_the_work(tmp_path: Path) -> None:
    write(tmp_path, passage("first"))
    with LexicalWriter(tmp_path, "s") as writer:
        writer.replace_file("file-a", [passage("second")])
    write(tmp_path, passage("third", 0, "file-b"))
    assert set(texts(tmp_path, "first second third")) == {"first", "third"}


def test_passages_of_another_file_are_refused(tmp_path: Path) -> None:
    with LexicalWriter(tmp_path, "s") as writer, pytest.raises(ValueError, match="file-b"):
        writer.replace_file("file-a", [passage("x", 0, "file-b")])


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with LexicalWriter(tmp_path, "s"):
        with pytest.raises(DataDirectoryInUse, match="being written"), LexicalWriter(tmp_path, "s"):
            pass
        with LexicalWriter(tmp_path, "other"):
            pass
    with LexicalWriter(tmp_path, "s"):
        pass


WRITER_PROCESS = """
import os, sys
from pathlib import Path
from retrieval.lexical import LexicalWriter
from retrieval.types import Passage
with LexicalWriter(Path(sys.argv[1]), "s") as writer:
    for line in sys.stdin:
        if line == "die\\n":
            os._exit(9)
        text = line.strip()
        writer.replace_file("file-p", [Passage("file-p", "ab" * 32, 0, "p.txt", text)])
        if text != "uncommitted":
            writer.commit()
        print("done", flush=True)
"""


def test_another_process_writes_is_seen_at_once_and_dies(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path)
    assert index.count("s") == 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITER_PROCESS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("giraffe", "zebra", "uncommitted"):
            process.stdin.write(text + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            shown = "zebra" if text == "uncommitted" else text
            assert len(index.search("s", shown, 5)) == 1
            assert index.count("s") == 1
        with pytest.raises(DataDirectoryInUse), LexicalWriter(tmp_path, "s"):
            pass
        process.stdin.write("die\n")
        process.stdin.flush()
        assert process.wait(30) == 9
    write(tmp_path, passage("after"))
    assert set(texts(tmp_path, "zebra after uncommitted")) == {"zebra", "after"}


def test_what_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, passage("The quagga was a zebra."))
    index = LexicalIndex(tmp_path)
    assert not index.is_quick("s", "zebra", 1), "it has to be opened first"
    assert index.search("s", "zebra", 1)
    assert index.is_quick("s", "zebra", QUICK_HITS)
    assert not index.is_quick("s", "zebra", QUICK_HITS + 1)
    assert not index.is_quick("none", "zebra", 1)
    assert not index.is_quick("s", "x" * (QUICK_CHARACTERS + 1), 1)
    write(tmp_path, passage("Green tea is steeped.", chunk=1))
    assert not index.is_quick("s", "zebra", 1), "it has to be opened again"
    assert index.search("s", "tea", 1)
    monkeypatch.setattr("retrieval.lexical.QUICK_PASSAGES", 0)
    assert not index.is_quick("s", "zebra", 1)


def test_an_open_store_is_read_while_another_one_is_opened(tmp_path: Path) -> None:
    write(tmp_path, passage("The quagga was a zebra."))
    index = LexicalIndex(tmp_path)
    assert index.search("s", "zebra", 1)
    with index._lock, ThreadPoolExecutor(1) as pool:  # as held while a store is opened
        assert pool.submit(index.search, "s", "zebra", 1).result(10)


def test_drop_and_make_again(tmp_path: Path) -> None:
    write(tmp_path, passage("old"))
    index = LexicalIndex(tmp_path)
    assert index.count("s") == 1
    drop(tmp_path, "s")
    assert index.search("s", "old", 5) == []
    assert not (tmp_path / "s").exists()
    drop(tmp_path, "s")
    write(tmp_path, passage("new"))
    assert index.search("s", "old", 5) == []
    assert len(index.search("s", "new", 5)) == 1


def test_an_index_of_another_version_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lexical, "SCHEMA_VERSION", 0)
        write(tmp_path, passage("x"))
    for use in (
        lambda: LexicalIndex(tmp_path).search("s", "x", 1),
        lambda: LexicalWriter(tmp_path, "s").__enter__(),
    ):
        with pytest.raises(IndexMissing, match=r"another version.*groundwire reindex"):
            use()


def test_an_index_with_other_words_in_it_is_another_version(tmp_path: Path) -> None:
    write(tmp_path, passage("x"))
    for keywords in (Keywords(stemming=False), Keywords(stop_words=False)):
        with pytest.raises(IndexMissing, match="another version"):
            LexicalIndex(tmp_path, keywords).count("s")
    assert LexicalIndex(tmp_path, Keywords(title_boost=1, headings_boost=0)).count("s") == 1


@pytest.mark.parametrize(
    ("keywords", "query", "finds"),
    [
        (Keywords(stemming=False), "dog", 0),
        (Keywords(stemming=False), "dogs", 1),
        (Keywords(stop_words=False), "the", 1),
        (Keywords(title_boost=0), "kennel", 0),
        (Keywords(headings_boost=0), "rules", 0),
        (Keywords(), "kennel", 1),
        (Keywords(), "rules", 1),
    ],
)
def test_other_words_and_weights(
    tmp_path: Path, keywords: Keywords, query: str, finds: int
) -> None:
    with LexicalWriter(tmp_path, "s", keywords) as writer:
        writer.add([passage("the dogs run", title="Kennel", headings=("Rules",))])
        writer.commit()
    assert len(LexicalIndex(tmp_path, keywords).search("s", query, 5)) == finds


@pytest.mark.parametrize("suffix", ["meta.json", "store", "term"])
def test_a_damaged_index_says_what_to_do(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, passage("x"))
    damaged = next(path for path in (tmp_path / "s").iterdir() if path.name.endswith(suffix))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(IndexMissing, match="groundwire reindex"):
        LexicalIndex(tmp_path).count("s")

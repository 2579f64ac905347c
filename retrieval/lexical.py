"""Keyword search with BM25, and where a passage's id becomes the passage. Only this file knows tantivy.

Each store is one index in `root/<store_id>/`. It holds every passage whole, so that its commit is the
one switch that decides what readers, in this process or another, see of a file.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from retrieval.errors import DataDirectoryInUse, IndexMissing
from retrieval.types import Hit, Passage

if TYPE_CHECKING:
    import tantivy

#: Moves with any change of the schema, the analyser or the stored form of a passage. It is part of the
#: analyser's name, which tantivy keeps in the schema: an index of another version is told by its schema.
SCHEMA_VERSION = 1
_META_FILE = "meta.json"

#: Longer words are blobs (base64, hashes), which nobody types and which bloat the dictionary.
_MAX_WORD_BYTES = 64

#: Different words of one query that are looked up, the first ones winning: each costs three lists.
MAX_QUERY_TERMS = 128
#: Up to here a search takes some tenths of a millisecond; a busy server's thread waits for Python's lock longer.
QUICK_CHARACTERS, QUICK_HITS, QUICK_PASSAGES = 300, 64, 50_000
#: Characters of a query that are read at all: prose has MAX_QUERY_TERMS different words long before.
MAX_QUERY_CHARS = 20_000

#: tantivy refuses less than 15 MB for each thread.
_WRITER_HEAP_BYTES = 32_000_000
_STORE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,511}")


@dataclass(frozen=True, slots=True)
class Keywords:
    """How text becomes words that can be found, and what a word weighs outside of a passage's own text.

    Every store has the defaults, whose figures are in `docs/quality.md`; others are there to be measured.
    `title_boost` is for the title and the file name, `headings_boost` for the headings above a passage. Many
    passages share them, so that a large boost ranks files and sections above passages.
    """

    stemming: bool = True
    stop_words: bool = True
    title_boost: float = 0.2
    headings_boost: float = 0.25

    @property
    def analyzer(self) -> str:
        """The name that stands for the version and the analysis in an index's schema."""
        stemming = "" if self.stemming else "_unstemmed"
        return f"groundwire_en_{SCHEMA_VERSION}{stemming}{'' if self.stop_words else '_all_words'}"

    @property
    def boosts(self) -> dict[str, float]:
        return {"text": 1.0, "title": self.title_boost, "headings": self.headings_boost}


class LexicalIndex:
    """Reads every store under `root`; safe to call from several threads.

    Each call sees the last commit, whoever made it, and raises IndexMissing for an index that is damaged
    or of another version.
    """

    def __init__(self, root: Path, keywords: Keywords = Keywords()) -> None:
        self._root = root
        self._keywords = keywords
        self._lock = threading.Lock()
        self._stores: dict[str, _Opened] = {}

    def search(self, store_id: str, text: str, k: int) -> list[Hit]:
        """The `k` best passages by BM25, best first; any text is a valid query.

        A passage needs one word of the query; English stemming and stop words; MAX_QUERY_TERMS and
        MAX_QUERY_CHARS bound the work. Empty when the store is absent or no word is left.
        """
        opened = self._open(store_id)
        if opened is None or k <= 0:
            return []
        terms = _terms(opened.analyzer, text)
        query = _query(opened.schema, terms, self._keywords.boosts)
        if query is None:
            return []
        searcher = opened.searcher
        found = searcher.search(query, k, count=False).hits
        return [Hit(searcher.doc(address)["id"][0], score) for score, address in found]

    def passages(self, store_id: str, ids: Sequence[str]) -> dict[str, Passage]:
        """The passages of these ids, in that order; ids that the store does not hold are left out."""
        opened = self._open(store_id)
        wanted = list(dict.fromkeys(ids))
        if opened is None or not wanted:
            return {}
        searcher = opened.searcher
        query = _any_id(opened.schema, wanted)
        found: dict[str, Passage] = {}
        for _, address in searcher.search(query, len(wanted), count=False).hits:
            passage = _decode(searcher.doc(address)["passage"][0])
            found[passage.id] = passage
        return {id_: found[id_] for id_ in wanted if id_ in found}

    def containing(
        self, store_id: str, words: str, field: Literal["text", "title"]
    ) -> list[Passage]:
        """Every passage with all of these words in its text, or in its title and file name; by place.

        Words as in `search`; where none is left, every passage.
        """
        opened = self._open(store_id)
        if opened is None or not opened.passages:
            return []
        searched = _words(words) if field == "title" else words
        query = _all_of(opened.schema, field, _terms(opened.analyzer, _encodable(searched)))
        hits = opened.searcher.search(query, opened.passages, count=False).hits
        found = [_decode(opened.searcher.doc(address)["passage"][0]) for _, address in hits]
        return sorted(found, key=lambda passage: passage.place)

    def is_quick(self, store_id: str, text: str, k: int) -> bool:
        """Whether to search for `text` and read `k` passages takes less than to hand it to a thread.

        So it is for a question to a store that is not large, and was opened since its last commit.
        """
        opened = self._stores.get(store_id)
        return (
            opened is not None
            and k <= QUICK_HITS
            and len(text) <= QUICK_CHARACTERS
            and opened.passages <= QUICK_PASSAGES
            and opened.stamp == _stamp(_directory(self._root, store_id))
        )

    def count(self, store_id: str) -> int:
        """How many passages the store holds; 0 when it is absent."""
        opened = self._open(store_id)
        return 0 if opened is None else opened.passages

    def stamp(self, store_id: str) -> _Stamp | None:
        """What moves with each commit to the store, in the same step; None when it is absent."""
        return _stamp(_directory(self._root, store_id))

    def _open(self, store_id: str) -> _Opened | None:
        directory = _directory(self._root, store_id)
        while (stamp := _stamp(directory)) is not None:
            # Before the lock too: under it another store may be read, and the event loop must not wait for that.
            opened = self._stores.get(store_id)
            if opened is not None and opened.stamp == stamp:
                return opened
            with self._lock:
                opened = self._stores.get(store_id)
                if opened is not None and opened.stamp == stamp:
                    return opened
                self._forget_dropped()
                try:
                    opened = self._stores[store_id] = _read(directory, stamp, self._keywords)
                    return opened
                except IndexMissing:
                    # A commit or a drop in between is no damage: look again.
                    if _stamp(directory) == stamp:
                        raise
        with self._lock:
            self._stores.pop(store_id, None)
        return None

    def _forget_dropped(self) -> None:
        """Let go of deleted indexes: an open searcher keeps their disk space."""
        for name in [n for n in self._stores if _stamp(_directory(self._root, n)) is None]:
            del self._stores[name]


class LexicalWriter:
    """Writes one store, as a context manager; readers see nothing of it until `commit`.

    Leaving the block drops what was not committed, and so does a crash, which leaves no lock behind.
    Entering raises DataDirectoryInUse while another writer is open on the store, and IndexMissing for
    an index that is damaged or of another version.
    """

    def __init__(self, root: Path, store_id: str, keywords: Keywords = Keywords()) -> None:
        self._keywords = keywords
        self._directory = _directory(root, store_id)
        self._writer: tantivy.IndexWriter | None = None

    def __enter__(self) -> LexicalWriter:
        index = _create_or_open(self._directory, self._keywords)
        try:
            self._writer = index.writer(_WRITER_HEAP_BYTES, num_threads=1)
        except ValueError as error:
            if "LockBusy" not in str(error):
                raise _unusable(self._directory, str(error)) from error
            raise DataDirectoryInUse(
                f"the keyword index {self._directory} is being written already; try again afterwards"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        writer, self._writer = self._opened, None
        writer.rollback()
        # Merges go on in threads after a commit: the lock is free only when they are done.
        writer.wait_merging_threads()

    def replace_file(self, file_id: str, passages: Sequence[Passage]) -> None:
        """Make `passages` all that the store has of this file.

        Raises ValueError when one of them is of another file.
        """
        strangers = {passage.file_id for passage in passages} - {file_id}
        if strangers:
            raise ValueError(f"passages of {', '.join(sorted(strangers))} given for {file_id}")
        self.delete_file(file_id)
        self.add(passages)

    def add(self, passages: Sequence[Passage]) -> None:
        """Add passages that the store does not have yet."""
        for passage in passages:
            self._opened.add_document(_document(passage))

    def delete_file(self, file_id: str) -> None:
        """Remove every passage of this file."""
        self._opened.delete_documents_by_term("file_id", file_id)

    def commit(self) -> None:
        """Show everything since the last commit to all readers, at once and durably."""
        self._opened.commit()

    @property
    def _opened(self) -> tantivy.IndexWriter:
        if self._writer is None:
            raise RuntimeError("LexicalWriter is used outside of its `with` block")
        return self._writer


def drop(root: Path, store_id: str) -> None:
    """Delete a store's index, or nothing when it is absent. No writer may be open on it."""
    directory = _directory(root, store_id)
    # Without this file the store is absent to every reader: a crash below leaves no half index.
    (directory / _META_FILE).unlink(missing_ok=True)
    if directory.is_dir():
        shutil.rmtree(directory)


_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A store as of one commit."""

    stamp: _Stamp
    schema: tantivy.Schema
    analyzer: tantivy.TextAnalyzer
    searcher: tantivy.Searcher

    @property
    def passages(self) -> int:
        return int(self.searcher.num_docs)


def _directory(root: Path, store_id: str) -> Path:
    if not _STORE_ID.fullmatch(store_id):
        raise ValueError(f"{store_id!r} is no store id: only letters, digits, '.', '_' and '-'")
    return root / store_id


def _stamp(directory: Path) -> _Stamp | None:
    """What changes with each commit, because tantivy replaces this file in it; None: no index."""
    try:
        stat = (directory / _META_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(directory: Path, stamp: _Stamp, keywords: Keywords) -> _Opened:
    index = _open_index(directory, keywords)
    # The default reader polls in a thread of its own, for as long as the searcher lives.
    index.config_reader("manual")
    return _Opened(stamp, index.schema, _analyzer(keywords), index.searcher())


def _create_or_open(directory: Path, keywords: Keywords) -> tantivy.Index:
    import tantivy

    if _stamp(directory) is None:
        directory.mkdir(parents=True, exist_ok=True)
        tantivy.Index(_schema(keywords), str(directory))
    return _open_index(directory, keywords)


def _open_index(directory: Path, keywords: Keywords) -> tantivy.Index:
    import tantivy

    try:
        index = tantivy.Index.open(str(directory))
    except ValueError as error:
        raise _unusable(directory, str(error)) from error
    if index.schema != _schema(keywords):
        raise _unusable(directory, "another version of groundwire made it")
    index.register_tokenizer(keywords.analyzer, _analyzer(keywords))
    return index


def _unusable(directory: Path, reason: str) -> IndexMissing:
    return IndexMissing(
        f"the keyword index {directory} cannot be used ({reason}); "
        "run `groundwire reindex` on the store: it builds the index again from the kept files"
    )


def _analyzer(keywords: Keywords) -> tantivy.TextAnalyzer:
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    steps = [Filter.remove_long(_MAX_WORD_BYTES), Filter.lowercase(), Filter.ascii_fold()]
    if keywords.stop_words:
        steps.append(Filter.stopword("english"))
    if keywords.stemming:
        steps.append(Filter.stemmer("english"))
    builder = TextAnalyzerBuilder(Tokenizer.simple())
    for step in steps:
        builder = builder.filter(step)
    return builder.build()


def _schema(keywords: Keywords) -> tantivy.Schema:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("file_id", tokenizer_name="raw", index_option="basic")
    for field in keywords.boosts:
        builder.add_text_field(field, tokenizer_name=keywords.analyzer, index_option="freq")
    builder.add_bytes_field("passage", stored=True)
    return builder.build()


def _document(passage: Passage) -> tantivy.Document:
    import tantivy

    document = tantivy.Document()
    document.add_text("id", passage.id)
    document.add_text("file_id", passage.file_id)
    document.add_text("text", _encodable(passage.text))
    document.add_text("title", _encodable(f"{passage.title} {_words(passage.filename)}"))
    document.add_text("headings", _encodable("\n".join(passage.headings)))
    document.add_bytes("passage", json.dumps(asdict(passage)).encode())
    return document


def _encodable(text: str) -> str:
    """Lone surrogates, which a file name of another encoding has, cannot go into the index."""
    return text.encode("utf-8", "replace").decode()


def _words(filename: str) -> str:
    """The words of a file name: the tokenizer splits at punctuation, this at `_` and camelCase."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", filename)


def _decode(stored: bytes) -> Passage:
    values: dict[str, Any] = json.loads(stored.decode())  # bytes would be guessed at
    return Passage(**{**values, "headings": tuple(values["headings"])})


def _terms(analyzer: tantivy.TextAnalyzer, text: str) -> list[str]:
    return list(dict.fromkeys(analyzer.analyze(text[:MAX_QUERY_CHARS])))[:MAX_QUERY_TERMS]


def _any_id(schema: tantivy.Schema, ids: Iterable[str]) -> tantivy.Query:
    """Each id a query of its own: a term set, built as an automaton, takes eight times as long for a dozen."""
    from tantivy import Occur, Query

    return Query.boolean_query(
        [(Occur.Should, Query.term_query(schema, "id", id_, "basic")) for id_ in ids]
    )


def _all_of(schema: tantivy.Schema, field: str, terms: Iterable[str]) -> tantivy.Query:
    from tantivy import Occur, Query

    clauses = [(Occur.Must, Query.term_query(schema, field, term, "basic")) for term in terms]
    return Query.boolean_query(clauses) if clauses else Query.all_query()


def _query(
    schema: tantivy.Schema, terms: Iterable[str], boosts: Mapping[str, float]
) -> tantivy.Query | None:
    """Any term in any field, built term by term: tantivy's parser would read text as syntax."""
    from tantivy import Occur, Query

    clauses = [
        (Occur.Should, Query.boost_query(Query.term_query(schema, field, term, "freq"), boost))
        for term in terms
        for field, boost in boosts.items()
        if boost
    ]
    return Query.boolean_query(clauses) if clauses else None

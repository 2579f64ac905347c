"""Any file that is supported to text in sections: what it is, whether that is true, and who reads it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from retrieval.errors import UnreadableFile
from retrieval.ingest.document import Document, Section
from retrieval.ingest.docx import read_docx
from retrieval.ingest.extract import read_html, read_pdf
from retrieval.ingest.markdown import read_markdown
from retrieval.ingest.records import csv_text, json_text, jsonl_text

__all__ = ["Document", "Section", "load", "supported"]

_MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
_HTML = frozenset({".html", ".htm", ".xhtml"})
_PLAIN = frozenset({".txt", ".text", ".log", ".rst", ".adoc", ".org", ".tex", ".srt", ".vtt"})
_CODE_EXTENSIONS = """
    .py .pyi .js .jsx .mjs .cjs .ts .tsx .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hpp .cs .fs
    .go .rs .rb .php .swift .m .mm .r .jl .lua .pl .pm .sh .bash .zsh .fish .ps1 .bat .sql .graphql
    .proto .yaml .yml .toml .ini .cfg .conf .properties .xml .css .scss .less .vue .svelte .dart .ex
    .exs .erl .hs .ml .clj .zig .nim .tf .hcl .cmake .gradle .mk .diff .patch
"""
_CODE = frozenset(_CODE_EXTENSIONS.split())
#: Files known by their whole name.
_NAMED = frozenset(
    {"makefile", "dockerfile", "license", "readme", "changelog", "authors", "notice"}
)

_TEXT_READERS: dict[str, Callable[[str], str]] = {
    ".csv": csv_text,
    ".tsv": lambda text: csv_text(text, "\t"),
    ".json": json_text,
    ".jsonl": jsonl_text,
    ".ndjson": jsonl_text,
}

#: What files begin with that are no text, with the name a reader knows them by.
_SIGNATURES = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive (as Word, Excel and EPUB files are)"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or password-protected Office document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"{\\rtf", "an RTF document"),
)
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
#: The PDF standard's readers accept the mark anywhere in the first kilobyte.
_PDF_MARK_BYTES = 1024
#: Text holds almost no control characters; a share above this is a binary file that happens to decode.
_MAX_CONTROL_SHARE = 0.01
_TEXT_CONTROLS = "\t\n\r\f\v\x1b"


def supported(name: str) -> bool:
    """Whether `load` knows what to do with a file of this name."""
    return _kind(name) is not None


def load(name: str, data: bytes, *, max_bytes: int) -> Document:
    """Read one file by the type that its name says and its content confirms.

    Text is UTF-8, UTF-16 or UTF-32 by its byte order mark, else UTF-8, else Windows-1252. Blocks, without
    network, cache or temporary files. Raises UnreadableFile, with the reason, for a file of an unknown
    type, over `max_bytes`, empty, without text, encrypted, damaged, or not of the type that it is named.
    """
    kind = _kind(name)
    if kind is None:
        raise UnreadableFile(name, "files of this type are not supported")
    if len(data) > max_bytes:
        raise UnreadableFile(name, f"it has {len(data):,} bytes; the limit is {max_bytes:,}")
    if not data.strip():
        raise UnreadableFile(name, "it is empty")
    try:
        document = _cleaned(_read(kind, data))
    except RecursionError as error:
        raise UnreadableFile(name, "it is nested too deeply") from error
    except ValueError as error:
        raise UnreadableFile(name, str(error)) from error
    if not document.sections:
        hint = "; a scanned PDF has to go through OCR first" if kind == ".pdf" else ""
        raise UnreadableFile(name, f"it holds no text{hint}")
    return document


def _kind(name: str) -> str | None:
    """The extension that decides, `.md`, `.html` and `.txt` standing for all of their family."""
    path = PurePosixPath(name.replace("\\", "/").lower())
    extension = path.suffix
    for family, kind in ((_MARKDOWN, ".md"), (_HTML, ".html"), (_PLAIN | _CODE, ".txt")):
        if extension in family:
            return kind
    if extension in {".pdf", ".docx", *_TEXT_READERS}:
        return extension
    return ".txt" if path.name in _NAMED else None


def _read(kind: str, data: bytes) -> Document:
    if kind == ".pdf":
        if b"%PDF-" not in data[:_PDF_MARK_BYTES]:
            raise _lie("a PDF", data)
        return read_pdf(data)
    if kind == ".docx":
        if not data.startswith(b"PK\x03\x04"):
            raise _lie("a Word document", data)
        return read_docx(data)
    text = _decode(data)
    if kind == ".md":
        return read_markdown(text)
    if kind == ".html":
        return read_html(text)
    reader = _TEXT_READERS.get(kind)
    if reader is None:
        return Document("", (Section(text),))
    try:
        return Document("", (Section(reader(text)),))
    except ValueError as error:
        said = kind.removeprefix(".").upper()
        raise ValueError(f"its name says {said} but its content is not: {error}") from error


def _lie(said: str, data: bytes) -> ValueError:
    return ValueError(f"its name says {said} but its content is {_seen(data) or 'something else'}")


def _seen(data: bytes) -> str | None:
    return next((what for mark, what in _SIGNATURES if data.startswith(mark)), None)


def _decode(data: bytes) -> str:
    if seen := _seen(data):
        raise ValueError(f"its name says text but its content is {seen}")
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            text = _decoded(data[len(mark) :], encoding)
            break
    else:
        text = _decoded(data, "utf-8")
        # Every byte but five is a character there, so the check below is what tells text from data.
        text = _decoded(data, "cp1252") if text is None else text
    if text is None or "\0" in text or _control_share(text) > _MAX_CONTROL_SHARE:
        raise ValueError("its name says text but its content is binary or of an unknown encoding")
    return text


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _control_share(text: str) -> float:
    sample = text[:65536]
    controls = sum(c not in _TEXT_CONTROLS and unicodedata.category(c) == "Cc" for c in sample)
    return controls / max(1, len(sample))


def _cleaned(document: Document) -> Document:
    """One kind of line end, no lone surrogates (JSON can name them), no sections of white space."""
    sections = tuple(
        Section(text, tuple(map(_clean, section.headings)), section.page)
        for section in document.sections
        if (text := _clean(section.text)).strip()
    )
    return Document(" ".join(_clean(document.title).split()), sections)


def _clean(text: str) -> str:
    encodable = text.encode("utf-8", "replace").decode()
    return re.sub(r"\r\n?|[\f\v]", "\n", encodable).replace("\0", "")

"""Reading files: real ones, made here, good and bad."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen import canvas  # type: ignore[import-untyped]

from retrieval.errors import UnreadableFile
from retrieval.ingest.load import Document, Section, load, supported

MAX_BYTES = 10_000_000


def read(name: str, data: bytes | str) -> Document:
    return load(name, data.encode() if isinstance(data, str) else data, max_bytes=MAX_BYTES)


def pdf(*pages: str, title: str | None = "Field Guide") -> bytes:
    buffer = io.BytesIO()
    paper = canvas.Canvas(buffer)
    if title:
        paper.setTitle(title)
    for page in pages:
        for n, line in enumerate(page.splitlines()):
            paper.drawString(72, 750 - 14 * n, line)
        paper.showPage()
    paper.save()
    return buffer.getvalue()


def encrypted(data: bytes, password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, owner_password="owner")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def word() -> bytes:
    document = docx.Document()
    document.core_properties.title = "Handbook"
    document.add_paragraph("Before: AT&T, x < y > z.")
    document.add_heading("Leave", 1)
    document.add_paragraph("Thirty days.\tTabbed\nbroken")
    document.add_paragraph("# no heading")
    document.add_heading("Sick & well", 2)
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ("name", "days", "Ada", "12"), strict=True):
        cell.text = text
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def rezipped(data: bytes, **changes: bytes | None) -> bytes:
    """The archive with parts replaced or, for None, left out."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            content = changes.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return buffer.getvalue()


def test_pdf_pages_and_title() -> None:
    document = read("guide.PDF", pdf("Quokkas smile.\nR&D < 5", "", "Page three."))
    assert document == Document(
        "Field Guide",
        (Section("Quokkas smile.\nR&D < 5", page=1), Section("Page three.", page=3)),
    )
    assert read("a.pdf", pdf("x", title=None)).title == ""


def test_pdf_that_opens_without_a_password_is_read() -> None:
    assert read("a.pdf", encrypted(pdf("open text"), "")).sections[0].text == "open text"


def test_docx_headings_lists_tables_and_markup_characters() -> None:
    assert read("a.docx", word()) == Document(
        "Handbook",
        (
            Section("Before: AT&T, x < y > z."),
            Section("Thirty days.\tTabbed\nbroken\n\n# no heading", ("Leave",)),
            Section("- first\n- second\nname | days\nAda | 12", ("Leave", "Sick & well")),
        ),
    )


def test_html_headings_and_title_without_scripts() -> None:
    html = """<!doctype html><html><head><title>Tea &amp; cake</title><meta name="description"
      content="about"><meta charset="latin-1"><script>evil()</script><style>p{}</style></head><body>
      <h1>Tea</h1><p>Drink caf\u00e9 &lt;hot&gt; R&amp;D.</p><form><p>in a form</p></form>
      <h2>Cake</h2><ul><li>one</li><li>two</li></ul><pre># code</pre></body></html>"""
    document = read("a.htm", html)
    assert document.title == "Tea & cake"
    assert [s.headings for s in document.sections] == [("Tea",), ("Tea", "Cake")]
    body = "\n".join(s.text for s in document.sections)
    for part in ("caf\u00e9 <hot> R&D", "in a form", "- one", "# code"):
        assert part in body
    for part in ("evil", "p{}", "title", "about"):
        assert part not in body


def test_markdown_sections() -> None:
    text = """---
title: "From the front"
tags: a
---
# Top `code` [link](http://x)

intro

```sh
# no heading
```

Under
-----
- item
---
## Empty
## Deep ##
#### Deeper
text
# Last
"""
    document = read("a.md", text)
    top = ("Top code link",)
    assert document.title == "From the front"
    assert [(s.headings, s.text) for s in document.sections] == [
        ((), 'title: "From the front"\ntags: a'),
        (top, "intro\n\n```sh\n# no heading\n```"),
        ((*top, "Under"), "- item\n---"),
        (top, "## Empty"),
        ((*top, "Deep", "Deeper"), "text"),
        ((), "# Last"),
    ]
    assert read("a.markdown", "pre\n\nTitle\n=====\n\nx").title == "Title"
    assert read("a.md", "no title").title == ""


@given(st.text(alphabet=st.sampled_from("ab#`~-=_ \n*>1."), max_size=120))
def test_markdown_loses_no_letter(text: str) -> None:
    if not text.strip():
        return
    document = read("a.md", text + "\nz")
    said = "".join(s.text + "".join(s.headings) for s in document.sections)
    assert all(said.count(letter) >= text.count(letter) for letter in "ab")


def test_csv_rows_name_their_columns() -> None:
    assert read("a.csv", 'name,days\r\nAda,12\r\n\r\n"B, C",\r\nD,1,more').sections == (
        Section("name: Ada\ndays: 12\n\nname: B, C\n\nname: D\ndays: 1\ncolumn 3: more"),
    )
    assert read("a.csv", "name;days\nAda;12\nBob;3").sections[0].text.startswith("name: Ada\ndays")
    assert read("a.tsv", "k\tv\n1,5\t2").sections[0].text == "k: 1,5\nv: 2"
    assert read("a.csv", "1,2\n3,4").sections[0].text.startswith("column 1: 1\ncolumn 2: 2\n\n")


def test_json_values_name_their_path() -> None:
    text = '{"a": {"b": [1, "two\\nlines"], "n": null}, "e": [], "s": "\\ud800"}'
    assert read("a.json", text).sections[0].text.split("\n") == [
        "a.b[0]: 1",
        "a.b[1]: two",
        "lines",
        "a.n: null",
        "e: []",
        "s: ?",
    ]
    assert read("a.json", '[{"k": 1}, {"k": 2}]').sections[0].text == "k: 1\n\nk: 2"
    assert read("a.jsonl", '{"k": 1}\n\n"v"\n').sections[0].text == "k: 1\n\nv"


@pytest.mark.parametrize(
    "data",
    [
        "né\r\nx\ry".encode(),
        "né\nx\ny".encode("utf-8-sig"),
        "né\nx\ny".encode("utf-16"),
        b"\xfe\xff" + "né\nx\ny".encode("utf-16-be"),
        "né\nx\ny".encode("utf-32"),
        "né\nx\ny".encode("cp1252"),
    ],
)
def test_encodings_and_line_ends(data: bytes) -> None:
    assert read("a.txt", data).sections == (Section("né\nx\ny"),)


def test_source_code_is_kept_as_it_is() -> None:
    code = "def f():\n    # x\n    return 1"
    assert read("src/a.py", code).sections == (Section(code),)
    assert read("Makefile", "all:\n\techo").sections[0].text == "all:\n\techo"


def test_supported() -> None:
    for name in ("a.pdf", "A.DOCX", "x/y.md", "c:\\x\\y.HTM", "LICENSE", "a.ndjson", "a.b.rs"):
        assert supported(name), name
    for name in ("a.exe", "a.png", "noextension", "", ".pdf/a", "a.doc", "pdf"):
        assert not supported(name), name


BOMB = b"<w:document>" + b" " * 70_000_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
ENTITIES = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><w>&a;</w>'


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "empty"),
        ("a.md", b" \n\t ", "empty"),
        ("a.txt", b"\xef\xbb\xbf  ", "no text"),
        ("a.exe", b"x", "not supported"),
        ("a.txt", b"x" * (MAX_BYTES + 1), "limit is 10,000,000"),
        ("a.pdf", b"just text", "its name says a PDF but its content is something else"),
        ("a.pdf", PNG, "its name says a PDF but its content is an image"),
        ("a.pdf", pdf("x" * 50)[:300], "damaged"),
        ("a.pdf", encrypted(pdf("x"), "secret"), "encrypted"),
        ("a.pdf", pdf("", ""), "no text; a scanned PDF"),
        ("a.docx", b"just text", "its name says a Word document but"),
        ("a.docx", OLE, "password-protected Office document"),
        ("a.docx", b"PK\x03\x04" + b"x" * 100, "cannot be unpacked"),
        ("a.docx", word()[:2000], "cannot be unpacked"),
        ("a.docx", rezipped(word(), **{"word/document.xml": None}), "no Word document"),
        ("a.docx", rezipped(word(), **{"word/document.xml": BOMB}), "unpacks to 70 MB"),
        ("a.docx", rezipped(word(), **{"word/document.xml": b"<w:p>"}), "damaged"),
        ("a.docx", rezipped(word(), **{"word/document.xml": ENTITIES}), "document type"),
        ("a.txt", pdf("x"), "its name says text but its content is a PDF"),
        ("a.py", PNG, "its content is an image"),
        ("a.txt", b"abc\0def", "binary"),
        ("a.txt", bytes(range(1, 256)), "binary"),
        ("a.txt", b"abc\x01\x02" * 20, "binary"),
        ("a.txt", b"\xff\xfea", "unknown encoding"),
        ("a.html", b"<html><script>x</script></html>", "no text"),
        ("a.json", b'{"a": 1,}', "its name says JSON but its content is not.*line 1, column"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"a": 1}\nnope', "line 2 of the file"),
        ("a.csv", b'a,b\n1,"never ends', "its name says CSV but.*line 2"),
    ],
)
def test_unreadable_files_say_why(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read(name, data)
    assert caught.value.name == name


@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(["a.txt", "a.md", "a.json", "a.csv", "a.pdf", "a.docx", "a.html"]),
    head=st.sampled_from([b"", b"%PDF-1.7\n", b"PK\x03\x04", b"<html>", b"\xff\xfe"]),
)
def test_rubbish_is_read_or_refused(data: bytes, name: str, head: bytes) -> None:
    try:
        document = read(name, head + data)
    except UnreadableFile:
        return
    assert document.sections


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    read("a.pdf", pdf("x"))
    read("a.html", "<p>x</p>")
    assert list(tmp_path.iterdir()) == []

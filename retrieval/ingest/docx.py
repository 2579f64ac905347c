"""Word documents to sections, by their heading styles. Pure: the archive is read in memory.

The general extraction library is not used here: it drops `&`, `<` and `>` from Word text ("AT&T" becomes
"ATT") and loses list items' marks.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from xml.etree import ElementTree

from retrieval.ingest.document import Document, Outline

#: Bytes of XML that are unpacked at most: some 20,000 pages. A small archive can claim far more.
MAX_UNPACKED_BYTES = 64_000_000
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_BODY, _STYLES, _CORE = "word/document.xml", "word/styles.xml", "docProps/core.xml"
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")
_HEADING_NAME = re.compile(r"heading (\d)$", re.IGNORECASE)
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def read_docx(data: bytes) -> Document:
    """Sections by heading style, tables as rows of `a | b`, notes at the end.

    The title is the document's property, or else its first title or heading of level 1.
    Raises ValueError, with the reason, for an archive that is damaged, too large or no Word document.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: _part(archive, name) for name in (_BODY, _STYLES, _CORE, *_NOTES)}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the archive cannot be unpacked: {error}") from error
    body = parts[_BODY]
    if body is None:
        raise ValueError("it holds no Word document")
    levels = _heading_levels(parts[_STYLES])
    outline = Outline()
    for name in (_BODY, *_NOTES):
        _read_blocks(parts[name], levels, outline)
    sections = outline.sections()
    core = parts[_CORE]
    title = (core.findtext(_TITLE) or "").strip() if core is not None else ""
    return Document(title or outline.first_title, sections)


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element | None:
    try:
        size = archive.getinfo(name).file_size
    except KeyError:
        return None
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"it unpacks to {size // 1_000_000} MB of text; the limit is "
            f"{MAX_UNPACKED_BYTES // 1_000_000} MB"
        )
    # An entry that is larger than it says is cut at what it says, and then fails its checksum.
    xml = archive.read(name)
    if b"<!DOCTYPE" in xml:
        raise ValueError(f"{name} declares a document type, which Word never does")
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _heading_levels(styles: ElementTree.Element | None) -> dict[str, int]:
    """The level by style id; ids are translated in other languages' Word, names are not."""
    levels = {}
    for style in styles.iter(f"{_W}style") if styles is not None else ():
        name = _value(style.find(f"{_W}name")).lower()
        found = _HEADING_NAME.match(name)
        if found or name == "title":
            levels[style.get(f"{_W}styleId", "")] = int(found[1]) if found else 1
    return levels


def _read_blocks(
    element: ElementTree.Element | None, levels: dict[str, int], outline: Outline
) -> None:
    """Paragraphs and tables, in order, at whatever depth of controls they stand."""
    for child in element if element is not None else ():
        if child.tag == f"{_W}p":
            _read_paragraph(child, levels, outline)
        elif child.tag == f"{_W}tbl":
            outline.lines += [*_rows(child), ""]
        elif child.tag != _FALLBACK:
            _read_blocks(child, levels, outline)


def _read_paragraph(
    paragraph: ElementTree.Element, levels: dict[str, int], outline: Outline
) -> None:
    text = _text(paragraph).strip()
    style = _value(paragraph.find(f"{_W}pPr/{_W}pStyle"))
    if not text:
        return
    if level := levels.get(style):
        outline.heading(level, " ".join(text.split()))
    elif paragraph.find(f"{_W}pPr/{_W}numPr") is not None or style.startswith("List"):
        outline.lines.append(f"- {text}")
    else:
        outline.lines += [text, ""]


def _rows(table: ElementTree.Element) -> Iterator[str]:
    for row in table.iter(f"{_W}tr"):
        cells = (" ".join(_text(cell).split()) for cell in row.iter(f"{_W}tc"))
        yield " | ".join(cells)


def _text(element: ElementTree.Element) -> str:
    parts: list[str] = []
    _gather(element, parts)
    return "".join(parts)


def _gather(element: ElementTree.Element, parts: list[str]) -> None:
    for child in element:
        if child.tag == f"{_W}t":
            parts.append(child.text or "")
        elif child.tag == f"{_W}p":
            _gather(child, parts)
            parts.append("\n")
        elif child.tag in _BREAKS:
            parts.append(_BREAKS[child.tag])
        # The fallback of a text box repeats its text; tab stops are no tabs.
        elif child.tag not in (_FALLBACK, f"{_W}pPr"):
            _gather(child, parts)


def _value(element: ElementTree.Element | None) -> str:
    return "" if element is None else element.get(f"{_W}val", "")

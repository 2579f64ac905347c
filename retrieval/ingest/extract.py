"""PDF and HTML to sections. Only this file knows kreuzberg; it reads in memory, without OCR or network."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING

from retrieval.ingest.document import Document, Section
from retrieval.ingest.markdown import read_markdown

if TYPE_CHECKING:
    import kreuzberg

#: The library gives up here: a hostile file must not hold an ingest for ever.
EXTRACTION_TIMEOUT_SECONDS = 120
#: What programs write as the title of a document that was given none.
_NO_TITLES = frozenset({"untitled", "unspecified", "(anonymous)"})
# Bounded and unable to cross a tag: else text full of unclosed tags takes squared time.
_HTML_TITLE = re.compile(r"<title\b[^<>]{0,200}>([^<]{0,2000})</title\s*>", re.IGNORECASE)
_HTML_META = re.compile(r"<meta\b[^<>]*>", re.IGNORECASE)


def read_pdf(data: bytes) -> Document:
    """One section a page that has text. Raises ValueError, with the reason, if it cannot be read."""
    result = _extract(data, "application/pdf", paged=True)
    title = (result.metadata.get("title") or "").strip()
    pages = tuple(Section(page["content"], page=page["page_number"]) for page in result.pages or ())
    return Document("" if title.lower() in _NO_TITLES else title, pages)


def read_html(text: str) -> Document:
    """Sections by heading, without scripts, styles and navigation; the title is the page's.

    Raises ValueError, with the reason, if it cannot be read.
    """
    titled = _HTML_TITLE.search(text)
    # The library writes these into the text as a heading; and the text is UTF-8 now, whatever they say.
    body = _HTML_META.sub("", _HTML_TITLE.sub("", text))
    document = read_markdown(_extract(body.encode("utf-8", "replace"), "text/html").content)
    title = unescape(titled[1]).strip() if titled else ""
    return Document(title or document.title, document.sections)


def _extract(data: bytes, mime_type: str, *, paged: bool = False) -> kreuzberg.ExtractionResult:
    import kreuzberg

    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format="markdown",
        pages=kreuzberg.PageConfig(extract_pages=True) if paged else None,
        # Whole pages can stand in a form.
        html_options={"preprocessing": {"enabled": True, "remove_forms": False}},
        content_filter=kreuzberg.ContentFilterConfig(include_headers=True, include_footers=True),
        extraction_timeout_secs=EXTRACTION_TIMEOUT_SECONDS,
    )
    try:
        return kreuzberg.extract_bytes_sync(data, mime_type, config)
    except (kreuzberg.KreuzbergError, RuntimeError, OSError) as error:
        if "password" in str(error):
            raise ValueError("it is encrypted: save it without a password") from error
        raise ValueError(f"it is damaged or incomplete ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]

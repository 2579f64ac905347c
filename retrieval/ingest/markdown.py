"""Markdown to sections, by its headings. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval.ingest.document import Document, Outline

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_NO_PARAGRAPH = re.compile(r"\s*(?:[-*+>|]|\d+[.)]\s|<)")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")


def read_markdown(text: str) -> Document:
    """Sections by heading, the title of the front matter or else of the first heading of level 1.

    Headings inside fenced code are code. Front matter stays as text: its words are findable.
    """
    front = _FRONT_MATTER.match(text)
    titled = _FRONT_TITLE.search(front[1]) if front else None
    outline = Outline()
    if front:
        outline.lines += [*front[1].split("\n"), ""]
        text = text[front.end() :]
    reader = _Reader(outline)
    for line in text.split("\n"):
        reader.read(line)
    sections = outline.sections()
    return Document(titled[1].strip("\"'") if titled else outline.first_title, sections)


@dataclass
class _Reader:
    """What must be known between two lines."""

    outline: Outline
    fence: str = ""

    def read(self, line: str) -> None:
        lines = self.outline.lines
        if self.fence:
            lines.append(line)
            if line.strip().startswith(self.fence) and not line.strip().strip(self.fence[0]):
                self.fence = ""
        elif fence := _FENCE.match(line):
            self.fence = fence[1]
            lines.append(line)
        elif heading := _HEADING.match(line):
            self.outline.heading(len(heading[1]), _plain(_unclosed(line[heading.end() :])))
        elif (underline := _UNDERLINE.match(line)) and _ends_in_title(lines):
            self.outline.heading(1 if underline[1][0] == "=" else 2, _plain(lines.pop()))
        else:
            lines.append(line)


def _unclosed(heading: str) -> str:
    """Without the `##` that may close a heading; by hand, as a pattern takes squared time for it."""
    heading = heading.strip()
    opened = heading.rstrip("#")
    return opened if not opened or opened[-1] in " \t" else heading


def _plain(heading: str) -> str:
    return _LINK.sub(r"\1", heading).replace("**", "").replace("`", "").strip()


def _ends_in_title(lines: list[str]) -> bool:
    """Whether the last line is a paragraph of one line, which an underline turns into a heading."""
    if not lines or not lines[-1].strip() or _NO_PARAGRAPH.match(lines[-1]):
        return False
    return len(lines) == 1 or not lines[-2].strip()

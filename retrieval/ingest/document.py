"""What a file is once it was read, and how a reader that meets headings builds it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Section:
    """Text under one heading or on one page; `headings` is the path down to its own heading.

    Pages count from 1; None where the format has none. Lines end in `\\n`.
    """

    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A file's own title ("" when it has none) and its sections in reading order."""

    title: str
    sections: tuple[Section, ...]


@dataclass
class Outline:
    """Sections in the making: lines go under the last heading."""

    lines: list[str] = field(default_factory=list)
    first_title: str = ""
    _sections: list[Section] = field(default_factory=list)
    _path: list[tuple[int, str]] = field(default_factory=list)

    def heading(self, level: int, name: str) -> None:
        """Begin a section under a heading of level 1 (outermost) to 6; a nameless one ends others."""
        self._close(level)
        self._path = [(above, title) for above, title in self._path if above < level]
        if name:
            self._path.append((level, name))
        if level == 1 and not self.first_title:
            self.first_title = name

    def sections(self) -> tuple[Section, ...]:
        """All sections; nothing may be added afterwards."""
        self._close(1)
        return tuple(self._sections)

    def _close(self, next_level: int) -> None:
        """End the section; a heading with nothing under it is kept as text."""
        text = "\n".join(self.lines).strip("\n")
        self.lines = []
        headings = tuple(name for _, name in self._path)
        if text.strip():
            self._sections.append(Section(text, headings))
        elif self._path and next_level <= self._path[-1][0] and not self._is_open(headings):
            level, name = self._path[-1]
            self._sections.append(Section(f"{'#' * level} {name}", headings[:-1]))

    def _is_open(self, headings: tuple[str, ...]) -> bool:
        return bool(self._sections) and self._sections[-1].headings[: len(headings)] == headings

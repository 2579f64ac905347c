"""Cut a document into passages of bounded size, at the best places there are. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from retrieval.ingest.document import Document, Section

#: A token counts for at most this many characters. Tokenizers call a long word one unknown token: without
#: this bound a megabyte of base64 would be one passage. Prose has 3 to 6 characters a token.
MAX_CHARS_PER_TOKEN = 12
#: Neighbouring sections are joined while they fill less than this share of a passage: a heading with one
#: line under it is no use alone, and two sections that stand well alone blur each other's vector.
JOIN_SHARE = 0.5
#: The least passage size: below, one character can have more tokens than a passage may.
MIN_CHUNK_TOKENS = 8

#: Where to cut, the best first. Each pattern matches what ends a piece.
_BREAKS = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"""(?<=[.!?…])["'”’)\]]*\s+|(?<=[。！？])"""),
)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage's text, the headings above all of it, and the page it is on."""

    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None


def chunk(
    document: Document,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    overlap_tokens: int = 0,
) -> list[Chunk]:
    """Cut a document into passages of at most `max_tokens`, in reading order.

    A passage is of one page. Small neighbouring sections are joined; their own headings then stand in the
    text as Markdown. A section that is too long is cut into even parts at paragraphs, lines, sentences,
    words or, last, inside a word. Parts of one section overlap by at most `overlap_tokens`. Nothing but
    white space is lost. Headings are not counted: they are no part of `Chunk.text`.
    Raises ValueError for a size below MIN_CHUNK_TOKENS or an overlap of more than half of it.
    """
    if max_tokens < MIN_CHUNK_TOKENS:
        raise ValueError(f"max_tokens is {max_tokens}; it must be {MIN_CHUNK_TOKENS} or more")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise ValueError(f"overlap_tokens is {overlap_tokens}; it must be 0 to {max_tokens // 2}")
    cutter = _Cutter(count_tokens, max_tokens, overlap_tokens)
    chunks: list[Chunk] = []
    for group in _groups(document.sections, cutter):
        headings = _common_path([section.headings for section in group])
        text = _joined(group, headings)
        chunks += [Chunk(part, headings, group[0].page) for part in cutter.cut(text)]
    return chunks


def _groups(sections: Sequence[Section], cutter: _Cutter) -> Iterator[list[Section]]:
    """Runs of neighbours that make one passage; a section that is too long stands alone."""
    group: list[Section] = []
    size = 0
    for section in sections:
        if not section.text.strip():
            continue
        joined = [*group, section]
        if group and size < cutter.limit * JOIN_SHARE and group[0].page == section.page:
            joined_size = cutter.size(_joined(joined, _common_path([s.headings for s in joined])))
            if joined_size <= cutter.limit:
                group, size = joined, joined_size
                continue
        if group:
            yield group
        group, size = [section], cutter.size(section.text)
    if group:
        yield group


def _common_path(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    same = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in same)


def _joined(group: Sequence[Section], headings: tuple[str, ...]) -> str:
    """The group's texts, each after those of its headings that were not said yet."""
    parts: list[str] = []
    said = headings
    for section in group:
        known = len(_common_path([said, section.headings]))
        for depth, heading in enumerate(section.headings[known:], start=known + 1):
            parts.append(f"{'#' * min(depth, 6)} {heading}")
        parts.append(section.text)
        said = section.headings
    return "\n\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Cutter:
    count_tokens: Callable[[str], int]
    limit: int
    overlap: int

    def size(self, text: str) -> int:
        """Tokens, or more where characters are the tighter bound; long texts are not tokenised."""
        text = text.strip()
        by_length = -(-len(text) // MAX_CHARS_PER_TOKEN)
        return by_length if by_length > self.limit else max(by_length, self.count_tokens(text))

    def cut(self, text: str) -> list[str]:
        """Parts of at most `limit`, stripped, without empty ones."""
        if self.size(text) <= self.limit:
            return [text.strip()] if text.strip() else []
        limit = self.limit - self.overlap
        pieces = list(self._pieces(text, 0, len(text), limit, 0))
        parts: list[str] = []
        for start, end in self._packed(text, pieces, limit):
            if body := text[start:end].strip():
                parts.append(self._with_overlap(text, start, end) if parts else body)
        return parts

    def _pieces(
        self, text: str, start: int, end: int, limit: int, level: int
    ) -> Iterator[tuple[int, int]]:
        """Spans of at most `limit` that tile the text, cut at the best breaks that are needed."""
        if self.size(text[start:end]) <= limit:
            yield start, end
        elif level == len(_BREAKS):
            yield from self._words(text, start, end, limit)
        else:
            for left, right in _spans(_BREAKS[level], text, start, end):
                yield from self._pieces(text, left, right, limit, level + 1)

    def _words(self, text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
        """The longest prefixes of at most `limit`, ended at white space where there is any."""
        while start < end:
            stop = min(end, start + limit * MAX_CHARS_PER_TOKEN)
            while (size := self.size(text[start:stop])) > limit:
                # The right length is near this share; a little less converges in two or three steps.
                shorter = start + max(1, int((stop - start) * limit / size * 0.95))
                stop = min(shorter, stop - 1) if stop - start > 1 else start + 1
                if stop - start == 1:
                    break
            stop = _at_space(text, start, stop, end)
            yield start, stop
            start = stop

    def _packed(
        self, text: str, pieces: Sequence[tuple[int, int]], limit: int
    ) -> Iterator[tuple[int, int]]:
        """Neighbouring pieces joined into even parts of at most `limit`."""
        sizes = [self.size(text[start:end]) for start, end in pieces]
        even = sum(sizes) / max(1, -(-sum(sizes) // limit))
        first = 0
        while first < len(pieces):
            last, size = first + 1, sizes[first]
            while last < len(pieces) and size < even and size + sizes[last] <= limit:
                size += sizes[last]
                last += 1
            # Tokens of a whole can outnumber those of its pieces.
            while (
                last - first > 1 and self.size(text[pieces[first][0] : pieces[last - 1][1]]) > limit
            ):
                last -= 1
            yield pieces[first][0], pieces[last - 1][1]
            first = last

    def _with_overlap(self, text: str, start: int, end: int) -> str:
        """The part, begun earlier by as many whole words as the overlap has room for."""
        reach = max(0, start - self.overlap * MAX_CHARS_PER_TOKEN)
        starts = [match.end() for match in _SPACE.finditer(text, reach, start)]
        # Fewer words are never longer, so the first start that fits is found by halving.
        first = bisect_right(
            starts, False, key=lambda at: self.size(text[at:start]) <= self.overlap
        )
        for begin in starts[first:]:
            if self.size(text[begin:end]) <= self.limit:
                return text[begin:end].strip()
        return text[start:end].strip()


def _spans(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in pattern.finditer(text, start, end):
        if start < match.end() < end:
            yield start, match.end()
            start = match.end()
    yield start, end


def _at_space(text: str, start: int, stop: int, end: int) -> int:
    """The end of the last white space before `stop`, or `stop` inside a word that fills the span."""
    if stop >= end or text[stop].isspace():
        return stop
    spaces = list(_SPACE.finditer(text, start, stop))
    return spaces[-1].end() if spaces and spaces[-1].end() > start else stop

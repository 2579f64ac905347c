"""Which files the given PATHs mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Folders that hold no documents of the user's, wherever they are found. Hidden ones are skipped too.
IGNORED_DIRECTORIES = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Source:
    """A file to ingest. `key` is its resolved absolute path, `name` its path below the given PATH."""

    path: Path
    key: str
    name: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What was found. `roots` are the given PATHs, resolved; `skipped` counts files of unknown types.

    `problems` are (name, reason) of what could not be looked at, `missing` the keys of PATHs that do
    not exist.
    """

    sources: tuple[Source, ...]
    roots: tuple[str, ...]
    missing: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    skipped: int


def printable(path: str) -> str:
    """A path as text that any database and terminal takes: bytes that are no UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def walk(
    paths: Sequence[Path], supported: Callable[[str], bool], exclude: Iterable[Path] = ()
) -> Walk:
    """Find the files below `paths`, each once, in the order of their names. Blocks.

    Hidden files and folders and IGNORED_DIRECTORIES are skipped, and so are files whose type is not
    `supported`; a PATH itself is taken whatever its name. Symbolic links are followed; a folder that is
    reached twice (a loop) is walked once. `exclude` are folders that are never entered.
    """
    walker = _Walker(supported)
    for folder in exclude:
        walker.enter(folder)
    for path in paths:
        walker.start(path)
    return Walk(
        sources=tuple(walker.sources.values()),
        roots=tuple(walker.roots),
        missing=tuple(walker.missing),
        problems=tuple(walker.problems),
        skipped=walker.skipped,
    )


class _Walker:
    def __init__(self, supported: Callable[[str], bool]) -> None:
        self._supported = supported
        self._entered: set[tuple[int, int]] = set()
        self.sources: dict[str, Source] = {}
        self.roots: list[str] = []
        self.missing: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.skipped = 0

    def enter(self, folder: Path) -> bool:
        """False when the folder was entered before, whatever path led to it."""
        try:
            stat = folder.stat()
        except FileNotFoundError:
            return False
        identity = (stat.st_dev, stat.st_ino)
        if identity in self._entered:
            return False
        self._entered.add(identity)
        return True

    def start(self, path: Path) -> None:
        root = Path(os.path.realpath(path))
        self.roots.append(printable(str(root)))
        try:
            if root.is_dir():
                self._folder(root, root)
            elif root.exists():
                self._file(root, path.name or root.name)
            else:
                self.missing.append(self.roots[-1])
        except OSError as error:
            self._problem(str(path), error)

    def _folder(self, folder: Path, root: Path) -> None:
        try:
            if not self.enter(folder):
                return
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self._problem(str(folder.relative_to(root)), error)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                self._entry(entry, root)
            except OSError as error:
                self._problem(os.path.relpath(entry.path, root), error)

    def _entry(self, entry: os.DirEntry[str], root: Path) -> None:
        path = Path(entry.path)
        if entry.is_dir():
            if entry.name not in IGNORED_DIRECTORIES:
                self._folder(path, root)
        elif entry.is_file():
            if self._supported(entry.name):
                self._file(path, str(path.relative_to(root)))
            else:
                self.skipped += 1
        elif entry.is_symlink() and self._supported(entry.name):
            raise FileNotFoundError(0, "a symbolic link to nothing")

    def _file(self, path: Path, name: str) -> None:
        real = os.path.realpath(path)
        key = printable(real)
        self.sources.setdefault(key, Source(Path(real), key, printable(name)))

    def _problem(self, name: str, error: OSError) -> None:
        self.problems.append((printable(name), error.strerror or str(error)))

"""Published versions of the index in a directory that many servers share: a Modal Volume, NFS, a disk.

`v-<n>/` is a whole data directory, less what belongs to running processes; its MANIFEST is written last and says
what must be in it. `CURRENT` names the version to answer from, and is replaced in one step when that version is
whole. A version never changes, and nobody works in one: writers and servers copy it to their own disk first,
for shared directories have no file locks that SQLite and Chroma could rely on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

log = logging.getLogger(__name__)

CURRENT, MANIFEST, LOCK = "CURRENT", "MANIFEST", "writer.lock"
#: The bytes of the files, which only a writer needs. They never change under a name.
BLOBS = "blobs"
#: Locks, addresses and logs of the processes that worked on a data directory.
_OF_PROCESSES = ("*.lock", "chroma.json", ".chroma.json.*", "chroma*.log", MANIFEST)
_VERSION = re.compile(r"v-([1-9][0-9]*)")


class PublishedError(Exception):
    """A published directory, or a version in it, cannot be used; the message says which and why."""


class InUse(PublishedError):
    """Another process works there."""


def folder(directory: Path, version: int) -> Path:
    return directory / f"v-{version}"


def current(published: Path) -> int | None:
    """The version that `CURRENT` names; None where nothing was published. Raises PublishedError."""
    path = published / CURRENT
    try:
        name = path.read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PublishedError(f"{path} cannot be read: {error}") from error
    number = _number(name)
    if number is None:
        raise PublishedError(f"{path} holds {name[:40]!r}, and should name a version, as in `v-12`")
    return number


def take(published: Path, target: Path, *, leave_out: tuple[str, ...] = ()) -> int | None:
    """Copy the current version to the folder `target` and return its number; None where nothing was published.

    `leave_out` are names at its top; what was in `target` is removed. A version that is removed meanwhile is given
    up for the one that is current then. No file stays open. Raises PublishedError where the version is not whole,
    and OSError for our own disk.
    """
    version = current(published)
    while version is not None:
        shutil.rmtree(target, ignore_errors=True)
        try:
            _copy_whole(folder(published, version), target, leave_out)
            return version
        except (OSError, PublishedError):
            shutil.rmtree(target, ignore_errors=True)
            newer = current(published)
            if newer == version:
                raise
            version = newer
    return None


def publish(data_dir: Path, published: Path) -> int:
    """Copy a data directory that nobody works in to the next version, and make that the current one.

    The version before stays, for servers that are copying it; older ones are removed, and so is what a killed writer
    left. Killed at any point, `CURRENT` names a whole version. The caller holds `writer_lock`.
    """
    before = current(published)
    version = max(_numbers(published), default=0) + 1
    # There before the others go: whoever is killed from now on, no number is given to two versions.
    folder(published, version).mkdir(mode=0o700)
    _sync_directory(published)
    _remove_others(published, {before, version})
    twins = None if before is None else folder(published, before)
    _write_version(data_dir, folder(published, version), twins)
    _sync_directory(published)
    _point_to(published, version)
    _remove_others(published, {before, version})
    return version


@contextlib.contextmanager
def writer_lock(published: Path) -> Iterator[None]:
    """Be the only writer of the directory, which is made at need. Raises InUse at once, and OSError.

    Where the directory is on a network, other machines see the lock only if that file system has locks.
    """
    published.mkdir(parents=True, exist_ok=True)
    with alone(published / LOCK, str(published)):
        yield


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which the kernel frees when its holder dies. Raises InUse naming `what` and the holder."""
    # Not inherited: a Chroma child that outlives us must not keep the lock.
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise InUse(
                f"{what} is in use by another process ({holder}): wait for it to finish, or stop it"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): see that nobody else works there", what, error)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check(version_dir: Path, leave_out: tuple[str, ...] = ()) -> None:
    """Raises PublishedError where a file that the version's MANIFEST names is missing or of another size."""
    for name, size in _manifest(version_dir).items():
        if name.partition("/")[0] in leave_out:
            continue
        path = version_dir / name
        if not path.is_file() or path.stat().st_size != size:
            raise PublishedError(f"{version_dir} is not whole: {name} is missing or was cut off")


def _manifest(version_dir: Path) -> Mapping[str, int]:
    """The version's files and their sizes in bytes."""
    path = version_dir / MANIFEST
    try:
        sizes: dict[str, int] = json.loads(path.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PublishedError(f"{version_dir} is not whole: no readable {MANIFEST}") from error
    return sizes


def _copy_whole(source: Path, target: Path, leave_out: tuple[str, ...]) -> None:
    wanted = [name for name in _manifest(source) if name.partition("/")[0] not in leave_out]
    target.mkdir(parents=True, mode=0o700)
    for name in [*wanted, MANIFEST]:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, path)
    check(target, leave_out)


def _write_version(data_dir: Path, target: Path, twins: Path | None) -> None:
    """Fill an empty folder with `data_dir`, durable, its MANIFEST last; a blob that `twins` has is its file again.

    Raises OSError, also for a file that vanishes meanwhile: what is left is no version.
    """
    sizes = {}
    for path in sorted(data_dir.rglob("*")):
        name = path.relative_to(data_dir).as_posix()
        if any(fnmatchcase(path.name, one) for one in _OF_PROCESSES):
            continue
        if not stat.S_ISREG(path.stat().st_mode):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        twin = twins / name if twins is not None and name.startswith(f"{BLOBS}/") else None
        sizes[name] = _put(path, target / name, twin)
    for directory in (path for path in target.rglob("*") if path.is_dir()):
        _sync_directory(directory)
    _write(target / MANIFEST, json.dumps({"files": sizes}))
    _sync_directory(target)


def _put(source: Path, target: Path, twin: Path | None) -> int:
    """Copy a file, or link its twin; returns its size."""
    if twin is not None:
        with contextlib.suppress(
            OSError
        ):  # the earlier version has none, or the file system no links
            os.link(twin, target)
            return target.stat().st_size
    shutil.copy(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _point_to(published: Path, version: int) -> None:
    pointer = published / f"{CURRENT}.new"
    _write(pointer, f"v-{version}\n")
    pointer.replace(published / CURRENT)
    _sync_directory(published)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Network file systems may refuse: there, their own commit makes names durable.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_others(directory: Path, kept: set[int | None]) -> None:
    for number in _numbers(directory) - kept:
        shutil.rmtree(folder(directory, number), ignore_errors=True)


def _numbers(directory: Path) -> set[int]:
    found = {_number(path.name) for path in directory.glob("v-*")}
    return {number for number in found if number is not None}


def _number(name: str) -> int | None:
    matched = _VERSION.fullmatch(name)
    return None if matched is None else int(matched[1])

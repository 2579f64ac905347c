"""Who may run Chroma on a data directory, and where it listens: a lock file and an endpoint file."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from retrieval.errors import DataDirectoryInUse
from retrieval.search.base import ChromaEndpoint

LOCK_NAME = "chroma.lock"
ENDPOINT_NAME = "chroma.json"


@dataclass(frozen=True, slots=True)
class Lease:
    """The exclusive lock on a data directory, held while any process has `descriptor` open."""

    data_dir: Path
    descriptor: int

    @classmethod
    def take(cls, data_dir: Path) -> Lease:
        """Lock `data_dir`, making it at need. Raises DataDirectoryInUse at once when another has it.

        An endpoint file left behind is removed: whoever wrote it is gone.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / LOCK_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            by = f"process {holder}" if holder.isdigit() else "another process"
            raise DataDirectoryInUse(f"data directory {data_dir} is in use by {by}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        (data_dir / ENDPOINT_NAME).unlink(missing_ok=True)
        return cls(data_dir, descriptor)

    def release(self) -> None:
        """Remove the endpoint file and close our descriptor."""
        (self.data_dir / ENDPOINT_NAME).unlink(missing_ok=True)
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Published:
    """What the owner tells other processes: Chroma's port and pid, and the token it knows."""

    port: int
    token: str
    pid: int

    @property
    def endpoint(self) -> ChromaEndpoint:
        note = "run by another groundwire process, which may have stopped"
        return ChromaEndpoint("127.0.0.1", self.port, note=note)

    def write(self, data_dir: Path) -> None:
        """Replace the endpoint file in one step; only the user may read the token."""
        temporary = data_dir / f".{ENDPOINT_NAME}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)
        temporary.replace(data_dir / ENDPOINT_NAME)

    @classmethod
    def read(cls, data_dir: Path) -> Published | None:
        """What was published last; None when nothing was, or nothing that we can read."""
        try:
            fields = json.loads((data_dir / ENDPOINT_NAME).read_bytes())
            return cls(int(fields["port"]), str(fields["token"]), int(fields["pid"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

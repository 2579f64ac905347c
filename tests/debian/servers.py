"""Servers of Debian's packages, started by the tests as their own. What is missing fails, and is never skipped."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.server.api.bench import DEADLINE_SECONDS, eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Postgres:
    """One PostgreSQL server. It refuses to run as root, and then runs as the package's own user."""

    binaries: Path
    folder: Path
    port: int
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, program: str, *args: str | Path) -> None:
        """Run one of its programs. What a server that it starts says goes to a file: it keeps what it is given."""
        user = "postgres" if os.geteuid() == 0 else None
        with (self.folder / "output").open("ab") as output:
            done = subprocess.run(
                [self.binaries / program, *args],
                cwd=self.folder, user=user, group=user, extra_groups=[] if user else None,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                stdout=output, stderr=output, timeout=DEADLINE_SECONDS, check=False,
            )  # fmt: skip
        assert done.returncode == 0, (self.folder / "output").read_text()

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -F"
        self.run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-D", "data", "-m", "immediate")

    def execute(self, statement: str) -> None:
        """Run a statement as the superuser."""
        address = ("-h", "127.0.0.1", "-p", str(self.port))
        self.run("psql", *address, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"d{next(self.numbers)}"
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    with tempfile.TemporaryDirectory(prefix="groundwire-postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            own = pwd.getpwnam("postgres")
            os.chown(folder, own.pw_uid, own.pw_gid)
        server = Postgres(found[-1].parent, folder, free_port())
        server.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def pushgateway() -> Iterator[str]:
    """The URL of a Prometheus Pushgateway, which whoever asks for it shares."""
    with running_pushgateway() as url:
        yield url


@contextmanager
def running_pushgateway() -> Iterator[str]:
    """The URL of a Prometheus Pushgateway of one's own."""
    program = shutil.which("prometheus-pushgateway")
    assert program, "the Pushgateway is missing: apt-get install prometheus-pushgateway"
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (
        subprocess.Popen(
            # Debian's keeps a file every five minutes, and the next one would begin with it.
            [program, f"--web.listen-address=127.0.0.1:{port}", "--persistence.file="],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
        httpx.Client(trust_env=False) as client,
    ):
        try:
            eventually(lambda: _ready(client, url) or process.poll() is not None)
            assert process.poll() is None
            yield url
        finally:
            process.kill()


def _ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False

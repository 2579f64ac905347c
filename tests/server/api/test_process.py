"""`groundwire serve --engine scripted` as a process: how it starts, stops and dies."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from retrieval.search.lease import Published
from tests.server.api.bench import (
    DEADLINE_SECONDS,
    GROUNDWIRE,
    ROUTE,
    chat,
    eventually,
    ingest_by_command,
    write_documents,
)


@dataclass
class Process:
    """A server process and the lines that it has said so far."""

    popen: subprocess.Popen[str]
    data_dir: Path
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def url(self) -> str | None:
        found = [re.search(r'ready on (http://[^\s"]+)', line) for line in self.lines]
        return next((match[1] for match in found if match), None)

    def ready(self) -> str:
        eventually(lambda: self.url is not None or self.popen.poll() is not None)
        assert self.url is not None, self.lines
        return self.url

    @property
    def chroma(self) -> psutil.Process:
        published = Published.read(self.data_dir)
        assert published is not None
        return psutil.Process(published.pid)

    def ended(self) -> int:
        """The exit status; by then all has been read."""
        status = self.popen.wait(DEADLINE_SECONDS)
        self.reader.join(DEADLINE_SECONDS)
        return status

    reader: threading.Thread = field(init=False)


@contextmanager
def serving(
    data_dir: Path, script: dict[str, Any] | None = None, **settings: str
) -> Iterator[Process]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GROUNDWIRE_")
    }
    environment |= {"GROUNDWIRE_" + name.upper(): value for name, value in settings.items()}
    environment["GROUNDWIRE_SCRIPTED"] = json.dumps(script or {})
    popen = subprocess.Popen(
        [GROUNDWIRE, "serve", "--engine", "scripted", "--port", "0", "--data-dir", data_dir],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process = Process(popen, data_dir)
    process.reader = threading.Thread(target=process.read)
    process.reader.start()
    try:
        yield process
    finally:
        popen.kill()
        popen.wait(DEADLINE_SECONDS)
        process.reader.join(DEADLINE_SECONDS)
        assert popen.stderr is not None
        popen.stderr.close()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    ingest_by_command(folder / "data", write_documents(folder / "docs"), "docs")
    return folder / "data"


def test_sigterm_finishes_what_is_in_flight(data_dir: Path) -> None:
    script = {"answer": "word " * 60, "token_seconds": 0.03}
    with serving(data_dir, script, default_store="docs") as process:
        url = process.ready()
        eventually(lambda: any("curl " in line for line in process.lines))
        steps = [line.split()[0] for line in process.lines if re.match(r"  \w+ +from ", line)]
        assert steps == ["imports", "catalog", "chroma", "embedder", "index"]
        chroma = process.chroma
        with (
            httpx.Client(base_url=url, timeout=DEADLINE_SECONDS, trust_env=False) as client,
            client.stream("POST", ROUTE, json=chat(stream=True)) as response,
        ):
            assert response.headers["x-rag-status"] == "hit"
            chunks = response.iter_text()
            text = next(chunks)
            process.popen.send_signal(signal.SIGTERM)
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            eventually(lambda: refuses(address))
            assert process.popen.poll() is None
            text += "".join(chunks)
        assert text.endswith("data: [DONE]\n\n")
        assert text.count("word") == 60
        assert process.ended() == 0
        assert not chroma.is_running()
        assert process.lines[-1].endswith("stopped")
        assert not any("Traceback" in line or "ERROR" in line for line in process.lines)


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_finish_is_cut_off_at_the_limit(data_dir: Path) -> None:
    script = {"prefill_seconds": 600}
    with serving(data_dir, script, shutdown_seconds="1") as process:
        url = process.ready()
        chroma = process.chroma
        with (
            httpx.Client(base_url=url, timeout=DEADLINE_SECONDS, trust_env=False) as client,
            client.stream("POST", ROUTE, json=chat(stream=True, model="scripted@docs")) as response,
        ):
            chunks = response.iter_text()
            next(chunks)
            process.popen.send_signal(signal.SIGTERM)
            assert process.ended() == 0
        assert not chroma.is_running()


def test_a_dead_engine_ends_the_process(data_dir: Path) -> None:
    with serving(data_dir, {"fail": "dead"}) as process:
        assert process.ended() == 1
        assert process.lines[-1] == "groundwire: the engine has died; the server ends"
        assert not any("Traceback" in line for line in process.lines)


def test_sigterm_while_it_starts(data_dir: Path) -> None:
    with serving(data_dir) as process:
        eventually(lambda: bool(process.lines))
        process.popen.send_signal(signal.SIGTERM)
        assert process.ended() in (0, 130)
        assert not any("Traceback" in line for line in process.lines)


def test_a_taken_port_is_said(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        popen = subprocess.run(
            [GROUNDWIRE, "serve", "--engine", "scripted", "--data-dir", data_dir,
             "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip
    assert popen.returncode == 1
    (line,) = popen.stderr.splitlines()
    assert "Address already in use" in line
    assert "--port" in line


def test_an_embedder_that_is_none_is_said_before_anything_starts(data_dir: Path) -> None:
    with serving(data_dir, embedder="./no-such-folder") as process:
        assert process.ended() == 1
        (line,) = process.lines
        assert "'./no-such-folder' is not a model folder" in line

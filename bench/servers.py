"""The contenders: bare vLLM and Groundwire, each in its own process, with the same engine flags."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

START_SECONDS = 600
#: How often a server that starts is looked for.
LOOK_SECONDS = 0.02
GROUNDWIRE = Path(sys.executable).with_name("groundwire")
PROGRAM = (str(GROUNDWIRE),)
SCRIPTED_MODEL = "scripted"
STORE = "bench"
#: Long enough for any answer length that a scenario asks for; about vLLM's pace on a small GPU.
SCRIPT = {
    "answer": "word " * 600,
    "max_model_len": 16384,
    "token_seconds": 0.002,
    "prefill_seconds": 0.01,
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running contender: `pid` is 0 for one that someone else started."""

    name: str
    url: str
    model: str
    pid: int = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
) -> Iterator[int]:
    """Start a server, wait until `/health` answers, and end it by its own process id afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **environment}
        )
        try:
            _wait_for(url, process, log)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{url} ended with {process.returncode}: {log.read_text()[-2000:]}")
        if _listens(url) and _is_well(url):
            return
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"{url} did not start within {START_SECONDS} s: {log.read_text()[-2000:]}")


def _listens(url: str) -> bool:
    """Cheaper than a request: whoever is asked is starting on the same cores."""
    host, _, port = url.rpartition("/")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def bare_vllm(model: Path, name: str, flags: Sequence[str], log: Path) -> Iterator[Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model),
        "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port),
        "--enable-prompt-tokens-details", "--disable-uvicorn-access-log",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *flags,
    ]  # fmt: skip
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with _running(command, url, log, environment) as pid:
        yield Server("bare vLLM", url, name, pid)


@contextmanager
def groundwire(
    data_dir: Path,
    log: Path,
    *,
    model: str,
    store: str | None = STORE,
    flags: Sequence[str] = (),
    scripted: bool = False,
    script: Mapping[str, Any] = SCRIPT,
    settings: Mapping[str, Any] = MappingProxyType({}),
    name: str = "Groundwire",
    program: Sequence[str] = PROGRAM,
) -> Iterator[Server]:
    """Our server over `data_dir`; `scripted` puts the engine without weights below it, which does `script`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *program, "serve", "--port", str(port), "--data-dir", str(data_dir),
        "--log-level", "warning", *(["--default-store", store] if store else []), *flags,
    ]  # fmt: skip
    environment = {f"GROUNDWIRE_{name.upper()}": str(value) for name, value in settings.items()}
    if scripted:
        environment |= {"GROUNDWIRE_ENGINE": "scripted", "GROUNDWIRE_SCRIPTED": json.dumps(script)}
    with _running(command, url, log, environment) as pid:
        yield Server(name, url, SCRIPTED_MODEL if scripted else model, pid)


def ingest(paths: Path, data_dir: Path, store: str = STORE) -> subprocess.Popen[bytes]:
    """`groundwire ingest` as a process; its report comes as JSON on stdout."""
    command = [str(GROUNDWIRE), "ingest", str(paths), "--store", store, "--quiet", "--json"]
    return subprocess.Popen(
        [*command, "--data-dir", str(data_dir)], stdout=subprocess.PIPE, env=dict(os.environ)
    )


def ingested(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """The report of an ingest, waited for. Raises RuntimeError when it failed."""
    out, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"groundwire ingest ended with {process.returncode}")
    report: dict[str, float] = json.loads(out)
    return report

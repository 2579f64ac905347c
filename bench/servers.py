"""The contenders: bare vLLM and Groundwire, each in its own process, with the same engine flags."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

START_SECONDS = 600
GROUNDWIRE = Path(sys.executable).with_name("groundwire")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Start a server, wait until `/health` answers, and end it by its own process id afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **environment}
        )
        try:
            _wait_for(url, process, log)
            yield url
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
            raise RuntimeError(f"{url} ended with {process.returncode}; see {log}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{url} did not start within {START_SECONDS} s; see {log}")


@contextmanager
def bare_vllm(model: Path, name: str, flags: Sequence[str], log: Path) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model),
        "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port),
        "--enable-prompt-tokens-details", "--disable-uvicorn-access-log",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *flags,
    ]  # fmt: skip
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with running(command, f"http://127.0.0.1:{port}", log, environment) as url:
        yield url


@contextmanager
def groundwire(flags: Sequence[str], data_dir: Path, store: str, log: Path) -> Iterator[str]:
    port = free_port()
    command = [
        str(GROUNDWIRE), "serve", "--port", str(port), "--data-dir", str(data_dir),
        "--default-store", store, "--log-level", "warning", *flags,
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{port}", log, {}) as url:
        yield url

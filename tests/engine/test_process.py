"""`groundwire serve` as a process with a real engine: what it answers, and how it ends when the engine dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from retrieval.trace import STAGES
from server.start import STEPS
from tests.engine.real import (
    FACT,
    QUESTION,
    START_SECONDS,
    ingest_folder,
    settings_for,
    write_documents,
)
from tests.server.api.bench import eventually
from tests.server.collector import Collector, collecting

pytestmark = pytest.mark.engine

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GROUNDWIRE = Path(sys.executable).with_name("groundwire")


@dataclass(frozen=True)
class Served:
    """A running `groundwire serve` and where its output goes."""

    process: psutil.Process
    popen: subprocess.Popen[bytes]
    url: str
    log: Path
    collector: Collector


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    write_documents(folder / "facts")
    settings = settings_for(folder / "data")
    ingest_folder(settings, folder / "facts", "facts")
    log = folder / "serve.log"
    command = [
        GROUNDWIRE,
        "serve",
        "--port",
        "0",
        "--default-store",
        "facts",
        "--data-dir",
        settings.data_dir,
    ]
    with log.open("wb") as out, collecting() as collector:
        tracing = ["--otlp-endpoint", collector.url, "--log-level", "debug"]
        popen = subprocess.Popen(
            [*command, *tracing, *settings.vllm_args],
            stdout=out,
            stderr=out,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "GROUNDWIRE_RETRIEVAL_TIMEOUT_SECONDS": "30",
            },
        )
        try:
            url = wait_for_url(popen, log)
            yield Served(psutil.Process(popen.pid), popen, url, log, collector)
        finally:
            popen.kill()
            popen.wait(30)


def wait_for_url(popen: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert popen.poll() is None, log.read_text()[-3000:]
        if found := re.search(r"ready on (http://\S+)", log.read_text()):
            return found[1]
        try:
            popen.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"no URL in time: {log.read_text()[-3000:]}")


def test_answers_grounded(served: Served) -> None:
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 4,
    }
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    answer = httpx.post(
        f"{served.url}/v1/chat/completions", json=body, headers=headers, timeout=120
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-rag-status"] == "hit"
    assert "curl " in served.log.read_text()


def test_vllm_s_span_is_below_ours(served: Served) -> None:
    collector = served.collector
    eventually(lambda: len([s for s in collector.spans if s.trace_id == TRACE]) >= len(STAGES) + 1)
    (ours,) = collector.roots(gen_ai__operation__name="chat")
    below = collector.below(ours)
    assert set(below) == {*STAGES, "llm_request"} - {"rerank"}
    vllm = below["llm_request"]
    assert vllm.attributes["gen_ai.usage.completion_tokens"] == 4
    assert vllm.resource["service.name"] == ours.resource["service.name"] == "groundwire"
    assert ours.start <= vllm.start
    assert vllm.end <= ours.end + 0.1


def test_no_prompt_is_in_the_log_of_vllm_either(served: Served) -> None:
    text = served.log.read_text()
    assert "DEBUG" in text
    assert QUESTION not in text
    assert FACT not in text


def test_the_log_speaks_after_vllm_is_loaded(served: Served) -> None:
    assert "INFO uvicorn.error Application startup complete" in served.log.read_text()


def test_one_metrics_page(served: Served) -> None:
    page = httpx.get(f"{served.url}/metrics").text
    for stage in set(STAGES) - {"rerank"}:
        assert (
            f'groundwire_stage_duration_seconds_count{{outcome="ok",stage="{stage}"}} 1.0' in page
        )
    assert "vllm:request_success_total" in page
    assert 'groundwire_tokens_total{kind="completion"} 4.0' in page


def test_the_start_is_told_by_step(served: Served) -> None:
    page = httpx.get(f"{served.url}/metrics").text
    steps = set(re.findall(r'groundwire_start_step_duration_seconds{step="(\w+)"}', page))
    assert steps == set(STEPS) - {"reranker", "index_copy", "wake"}
    engine, chroma = (
        re.search(rf"  {step} +from .*", served.log.read_text())[0]  # type: ignore[index]
        for step in ("engine", "chroma")
    )
    assert "chroma, embedder, index" in engine.partition("beside ")[2]
    assert chroma.endswith("beside engine")


def test_engine_death_ends_the_process(served: Served) -> None:
    children = served.process.children(recursive=True)
    workers = [
        child
        for child in children
        if "VLLM" in "".join(child.cmdline()) or "spawn" in "".join(child.cmdline())
    ]
    assert workers, [child.cmdline() for child in children]
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    assert served.popen.wait(30) == 1
    lines = [line for line in served.log.read_text().splitlines() if line.strip()]
    assert lines[-1] == "groundwire: the engine has died; the server ends", lines[-10:]
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, [process.cmdline() for process in alive]


def test_a_part_that_fails_ends_the_load_of_the_model(tmp_path: Path) -> None:
    command = [GROUNDWIRE, "serve", "--data-dir", tmp_path, "--chroma-url", "http://127.0.0.1:9"]
    popen = subprocess.Popen(
        [*command, "--port", "0", "--enforce-eager"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = popen.communicate(timeout=START_SECONDS)
    finally:
        popen.kill()
    assert popen.returncode == 1
    assert "starting vLLM" in said
    assert re.search(r"^groundwire: cannot start: Chroma .*127\.0\.0\.1:9", said, re.MULTILINE), (
        said
    )
    left = [process for process in psutil.process_iter() if session_of(process) == popen.pid]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:  # it has just ended
        return None

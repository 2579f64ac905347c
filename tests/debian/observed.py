"""Two servers under mixed traffic, scraped by a real Prometheus with our own configuration and rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml

from grafana.__main__ import FOLDER as DASHBOARDS
from grafana.preview import Prometheus, Span, answers
from tests.debian.servers import free_port
from tests.debian.traffic import GOLDEN, KEY, Traffic
from tests.engine.real import settings_for, write_documents
from tests.engine.test_process import wait_for_url
from tests.grafana.known import FOLDER
from tests.retrieval.rerank.test_cross_encoder import make_model
from tests.server.api.bench import GROUNDWIRE, eventually
from tests.server.api.test_process import serving

#: Scraped and evaluated each second, so that a minute of traffic is a graph.
EVERY = "1s"
WINDOW_SECONDS = 10
#: So small a batch that requests wait for it.
FEW = ("--max-num-seqs=2",)


@dataclass(frozen=True)
class Observed:
    """The Prometheus, and from when to when there was traffic."""

    prometheus: Prometheus
    span: Span

    @cached_property
    def boards(self) -> dict[str, tuple[dict[str, Any], dict[str, list[Any]]]]:
        """Each dashboard's JSON and what its queries give, by its uid."""
        found = {}
        for path in sorted(DASHBOARDS.glob("*.json")):
            board = json.loads(path.read_text())
            found[path.stem] = (board, answers(board, self.prometheus, self.span))
        return found


def config(engine: str, replica: str, gateway: str) -> dict[str, Any]:
    """`grafana/prometheus.yml` with other addresses, and a gateway of which only the time of a push is kept."""
    made: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    made["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    made["rule_files"] = [str(FOLDER / name) for name in made["rule_files"]]
    (job,) = made["scrape_configs"]
    job["authorization"]["credentials"] = KEY
    job["static_configs"] = [
        {"targets": [url.removeprefix("http://")], "labels": {"instance": name}}
        for name, url in (("engine", engine), ("replica", replica))
    ]
    pushed = {
        "job_name": "pushgateway",
        "honor_labels": True,
        "static_configs": [{"targets": [gateway.removeprefix("http://")]}],
        "metric_relabel_configs": [
            {"source_labels": ["__name__"], "regex": "push_time_seconds", "action": "keep"}
        ],
    }
    return {**made, "scrape_configs": [job, pushed]}


@contextmanager
def prometheus(folder: Path, configured: dict[str, Any]) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    assert program, "Prometheus is missing: apt-get install prometheus"
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [
                program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
            ],
            stdout=log, stderr=log,
        ) as process,
    ):  # fmt: skip
        try:
            eventually(lambda: _ready(url) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            with closing(Prometheus(url)) as asked:
                yield asked
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def engine(home: Path, golden: Path) -> Iterator[str]:
    """The URL of a server with the real engine."""
    given = {
        "api_keys": f"local:{KEY}", "default_store": "facts", "canary_file": str(golden), "canary_seconds": "5",
        "canary_min_recall": "0.1",
        "answer_cache_entries": "64", "embedding_cache_entries": "4", "host": "127.0.0.1",
    }  # fmt: skip
    variables = {f"GROUNDWIRE_{name.upper()}": value for name, value in given.items()}
    log = home.parent / "engine.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [GROUNDWIRE, "serve", "--port", "0", "--data-dir", home, *settings_for(home).vllm_args, *FEW],
            stdout=out, stderr=out, env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield wait_for_url(popen, log)
    finally:
        popen.terminate()
        popen.wait(60)
    # The last word is ours, and no library's about the end of its own objects.
    assert log.read_text().rstrip().endswith("stopped"), log.read_text()[-2000:]


def replica(folder: Path, engine_url: str, model: str, gateway: str) -> dict[str, str]:
    """The settings of a server of few places with a published index, a reranker, and routes to the other one."""
    upstreams = [
        {"name": "large", "url": engine_url, "api_key": KEY, "models": [model]},
        {"name": "gone", "url": "http://127.0.0.1:9", "models": ["gone"], "max_model_len": 2048},
    ]
    return {
        "published_dir": str(folder / "published"), "published_poll_seconds": "0.5", "default_store": "facts",
        "api_keys": f"local:{KEY},second:other", "metrics_tenants": "1", "max_running": "3", "max_queued": "2",
        "max_stream_seconds": "1", "engines": json.dumps(upstreams), "rerank_timeout_seconds": "5",
        "routing": json.dumps({"small": "scripted", "large": model}), "reranker": make_model(folder / "reranker"),
        "push_url": gateway, "push_seconds": "1", "push_instance": "replica",
    }  # fmt: skip


@contextmanager
def observing(folder: Path, gateway: str) -> Iterator[Observed]:
    """Servers, traffic until its story is over, and the Prometheus that has seen it."""
    write_documents(folder / "facts")
    (folder / "golden.jsonl").write_text(GOLDEN)
    script = {
        "answer": "The sources say so [1]. " * 3,
        "prefill_seconds": 0.05,
        "token_seconds": 0.02,
    }
    home, published = folder / "home", folder / "published"
    with ExitStack() as stack:
        before = Traffic("", "", home, folder / "facts", published, lambda _: True)
        assert before.ingest(before.folder) == 0
        assert before.ingest(before.folder, publish=True) == 0
        engine_url = stack.enter_context(engine(home, folder / "golden.jsonl"))
        settings = replica(folder, engine_url, _model(engine_url), gateway)
        replica_url = stack.enter_context(serving(folder / "replica", script, **settings)).ready()
        configured = config(engine_url, replica_url, gateway)
        asked = stack.enter_context(prometheus(folder / "prometheus", configured))
        traffic = replace(
            before,
            engine_url=engine_url,
            replica_url=replica_url,
            seen=lambda expr: bool(asked.instant(expr, time.time())),
        )
        start = time.time()
        with traffic.flowing():
            traffic.story()
        yield Observed(asked, Span(start, time.time(), WINDOW_SECONDS))


def _model(url: str) -> str:
    headers = {"authorization": f"Bearer {KEY}"}
    listed = httpx.get(f"{url}/v1/models", headers=headers, trust_env=False).json()["data"]
    name: str = listed[0]["id"]
    return name

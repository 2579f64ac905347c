"""push: what a Pushgateway hears, over real HTTP; the real one is in tests/debian."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.engine.scripted import ScriptedEngine
from server.services import open_services
from server.settings import Settings
from server.telemetry.exposition import Gateway
from server.telemetry.ingests import IngestTotals, write_totals
from server.telemetry.metrics import Metrics, new_registry
from server.telemetry.push import own_instance, pushing
from tests.server.api.bench import eventually

pytestmark = pytest.mark.anyio


@dataclass
class Heard:
    """Requests as (method, path, authorization, body); `status` is what they are answered with."""

    requests: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    status: int = 200

    @property
    def methods(self) -> list[str]:
        return [method for method, *_ in self.requests]


@contextmanager
def listening(heard: Heard, port: int = 0) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            heard.requests.append(
                (self.command, self.path, self.headers.get("authorization"), body)
            )
            self.send_response(heard.status)
            self.end_headers()

        do_PUT = do_DELETE = _take

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def metrics() -> Metrics:
    made = Metrics(new_registry())
    made.retrievals.labels("hit").inc()
    return made


async def test_it_pushes_at_once_then_a_last_time_and_deletes() -> None:
    heard = Heard()
    with listening(heard) as port:
        gateway = Gateway.parse(f"http://127.0.0.1:{port}/below/", "one/1")
        async with pushing(gateway, metrics(), 600):
            eventually(lambda: heard.methods == ["PUT"])
    assert heard.methods == ["PUT", "PUT", "DELETE"]
    (path,) = {path for _, path, _, _ in heard.requests}
    encoded = base64.urlsafe_b64encode(b"one/1").decode()
    assert path == f"/below/metrics/job/groundwire/instance@base64/{encoded}"
    body = heard.requests[0][3]
    assert b'groundwire_retrievals_total{status="hit"} 1.0' in body
    assert b"process_cpu_seconds_total" in body


async def test_the_first_push_has_the_totals_of_the_ingests(tmp_path: Path) -> None:
    """Else a failure of long ago is an increase at each start."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    write_totals(data_dir, IngestTotals().plus("failed", {}, {}, 9.0))
    heard = Heard()
    with listening(heard) as port:
        settings = Settings(
            data_dir=data_dir, push_url=f"http://127.0.0.1:{port}", push_seconds=100
        )
        async with open_services(settings, engine=ScriptedEngine()):
            eventually(lambda: heard.methods == ["PUT"])
    assert b'groundwire_ingest_runs_total{outcome="failed"} 1.0' in heard.requests[0][3]


async def test_it_goes_on_pushing() -> None:
    heard = Heard()
    with listening(heard) as port:
        async with pushing(Gateway.parse(f"http://127.0.0.1:{port}", "i"), metrics(), 0.01):
            eventually(lambda: len(heard.methods) > 3)


async def test_a_gateway_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.telemetry.push")
    heard = Heard(status=500)
    with listening(heard) as port:
        gateway = Gateway.parse(f"http://me:s3cret@127.0.0.1:{port}", "i")
        async with pushing(gateway, metrics(), 0.01):
            eventually(lambda: len(heard.methods) > 3)
            heard.status = 200
            eventually(lambda: "again" in caplog.text.partition("tried again")[2])
            heard.status = 503
            eventually(lambda: len(caplog.records) == 3)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "WARNING"]
    assert f"cannot be pushed to http://127.0.0.1:{port}" in caplog.text
    assert "s3cret" not in caplog.text
    assert "DELETE" not in heard.methods, "one that does not answer is not asked twice"


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with listening(Heard()) as port:
        pass
    async with pushing(Gateway.parse(f"http://127.0.0.1:{port}", "i"), metrics(), 600):
        eventually(lambda: "refused" in caplog.text)


async def test_user_and_password_are_basic_auth() -> None:
    heard = Heard()
    with listening(heard) as port:
        gateway = Gateway.parse(f"http://me:s3c%40ret@127.0.0.1:{port}", "i")
        assert "s3c" not in repr(gateway)
        async with pushing(gateway, metrics(), 600):
            pass
    sent = "Basic " + base64.b64encode(b"me:s3c@ret").decode()
    assert {authorization for _, _, authorization, _ in heard.requests} == {sent}


def test_instances_of_processes_differ() -> None:
    host, _, process = own_instance().rpartition(":")
    assert host
    assert process.isdigit()


def test_the_url_is_a_secret() -> None:
    settings = Settings(push_url="https://me:s3cret@push.example.org")
    assert "s3cret" not in repr(settings)
    for bad in ("push.example.org", "https://"):
        with pytest.raises(ValueError, match="push_url"):
            Settings(push_url=bad)

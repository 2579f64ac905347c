"""`modal_deploy.py`: what it asks Modal for, and its app from enter to exit, without Modal's network."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from server.telemetry.logs import JsonFormatter
from tests.server.api.bench import DEADLINE_SECONDS
from tests.server.test_push import Heard, listening

ROOT = Path(__file__).parents[2]
GROUNDWIRE = Path(sys.executable).with_name("groundwire")
#: What Modal's proxy calls the app by.
HOST = "workspace--groundwire-server-web.modal.run"
KEY = "sk-modal"
ASK = {"messages": [{"role": "user", "content": "How long is Morva tea steeped?"}]}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A shell without variables of ours."""
    for name in [name for name in os.environ if name.startswith(("GROUNDWIRE_", "DEPLOY_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def deploy_file(environment: pytest.MonkeyPatch, **choices: str) -> ModuleType:
    """The file as a shell with these choices reads it."""
    for name, value in choices.items():
        environment.setenv(f"DEPLOY_{name}", value)
    spec = importlib.util.spec_from_file_location("deployed", ROOT / "modal_deploy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def server(module: ModuleType) -> Any:
    """What Modal would be asked for the class."""
    return module.Server().web.info()


def test_by_default_one_a10g_is_always_warm(environment: pytest.MonkeyPatch) -> None:
    module = deploy_file(environment)
    asked = server(module)
    assert asked.gpus == [("A10G", 1)]
    assert (asked.cpu, asked.memory_mib) == (4, 16 * 1024)
    assert asked.startup_timeout >= 600
    assert asked.concurrency_info.max_inputs > asked.concurrency_info.target_inputs > 1
    volumes = {path: volume.read_only for path, volume in asked.volumes.items()}
    assert volumes == {"/weights": False, "/compiled": False, "/index": True}
    assert module.MIN_CONTAINERS == 1
    assert module.SECRET_KEYS == ["GROUNDWIRE_API_KEYS"]


def test_choices_are_the_shell_s_and_go_into_the_image(environment: pytest.MonkeyPatch) -> None:
    module = deploy_file(
        environment, GPU="L4,A10G", PROFILE="qwen3-8b", SNAPSHOT="1", MIN_CONTAINERS="0"
    )
    assert server(module).gpus == [("L4", 1), ("A10G", 1)]
    assert (module.SNAPSHOT, module.MIN_CONTAINERS) == (True, 0)
    assert module.ENVIRONMENT["GROUNDWIRE_PROFILE"] == "qwen3-8b"
    # A container reads the file too, and must choose the same.
    assert module.ENVIRONMENT["DEPLOY_SNAPSHOT"] == "1"


def test_live_replicas_share_databases_and_no_volume(environment: pytest.MonkeyPatch) -> None:
    module = deploy_file(environment, MODE="live")
    assert set(server(module).volumes) == {"/weights", "/compiled"}
    shared = {"GROUNDWIRE_CHROMA_URL", "GROUNDWIRE_CATALOG_URL", "GROUNDWIRE_SIGNING_SECRET"}
    assert shared < set(module.SECRET_KEYS)
    assert "GROUNDWIRE_PUBLISHED_DIR" not in module.ENVIRONMENT


def test_another_mode_is_refused(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="DEPLOY_MODE is 'lively'; it takes"):
        deploy_file(environment, MODE="lively")


def test_ingestion_needs_no_gpu_and_is_the_only_writer(environment: pytest.MonkeyPatch) -> None:
    asked = deploy_file(environment).ingest.info()
    assert asked.gpus == []
    volumes = {path: volume.read_only for path, volume in asked.volumes.items()}
    assert volumes == {"/documents": True, "/index": False}


def test_the_image_has_pins_alone(environment: pytest.MonkeyPatch) -> None:
    module = deploy_file(environment)
    assert "vllm==0.32.0" in module.PINS
    assert all("==" in pin for pin in (*module.PINS, *module.ALSO))
    ours = (ROOT / "requirements" / "dev.txt").read_text().split()
    assert {pin for pin in module.ALSO if pin.startswith("asyncpg")} <= set(ours)


def test_everything_in_the_packages_is_mounted() -> None:
    """What the file does not mount would be missing in a container, and only there."""
    for package in ("server", "retrieval"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file()]
        others = {path.name for path in files if path.suffix not in (".py", ".pyc", ".toml")}
        assert others <= {"py.typed"}


# From enter to exit


class Container:
    """Stands where Modal's instance of the class stands; the methods are the file's own."""

    def __init__(self, module: ModuleType) -> None:
        self._class = module.Server._get_user_cls()

    def method(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._class, name)._get_raw_f()
        return lambda: function(self)


@asynccontextmanager
async def running(module: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a container that has entered."""
    container = Container(module)
    await container.method("load")()
    await container.method("start")()
    try:
        app = container.method("web")()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url=f"https://{HOST}",
                headers={"authorization": f"Bearer {KEY}"},
            ) as client,
        ):
            yield client
    finally:
        await container.method("stop")()


@pytest.fixture
def container(environment: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A container's variables, with the scripted engine."""
    environment.setenv("GROUNDWIRE_ENGINE", "scripted")
    environment.setenv("GROUNDWIRE_API_KEYS", KEY)
    # A busy machine is no reason for an answer without its sources.
    environment.setenv("GROUNDWIRE_RETRIEVAL_TIMEOUT_SECONDS", "60")
    environment.setenv("GROUNDWIRE_DATA_DIR", str(tmp_path / "data"))
    environment.setenv("MODAL_TASK_ID", "ta-7")
    return environment


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A published directory with one document."""
    (tmp_path / "tea.txt").write_text("Morva tea is steeped for eleven minutes.\n")
    published = tmp_path / "index"
    words = ("ingest", tmp_path / "tea.txt", "--store", "docs", "--publish", published, "--quiet")
    subprocess.run([GROUNDWIRE, *words], cwd=tmp_path, check=True, timeout=120)
    return published


@pytest.mark.anyio
@pytest.mark.parametrize("snapshot", ["0", "1"])
async def test_published_documents_ground_its_answers(
    container: pytest.MonkeyPatch, index: Path, snapshot: str
) -> None:
    container.setenv("GROUNDWIRE_PUBLISHED_DIR", str(index))
    container.setenv("GROUNDWIRE_DEFAULT_STORE", "docs")

    module = deploy_file(container, SNAPSHOT=snapshot)
    container.setattr(
        module, "refresh", _nothing
    )  # a Volume reloads in a container of Modal's alone
    async with running(module) as client:
        assert (await client.get("/ready")).json()["status"] == "ready"
        answer = await client.post("/v1/chat/completions", json=ASK)
        assert answer.headers["x-rag-status"] == "hit"
        refused = await client.post("/v1/vector_stores", json={"name": "more"})
        assert refused.status_code == 409
        assert "modal_deploy.py::ingest" in refused.json()["error"]["message"]
        client.headers.pop("authorization")
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 401


async def _nothing() -> None: ...


@pytest.mark.anyio
@pytest.mark.parametrize("snapshot", ["0", "1"])
async def test_a_container_tells_where_the_seconds_of_its_start_went(
    container: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, snapshot: str
) -> None:
    caplog.set_level(logging.INFO)
    async with running(deploy_file(container, MODE="live", SNAPSHOT=snapshot)) as client:
        metrics = (await client.get("/metrics")).text
    steps = set(re.findall(r'^groundwire_start_step_duration_seconds{step="(\w+)"}', metrics, re.M))
    assert {"imports", "catalog", "chroma", "embedder", "index"} <= steps
    assert ("wake" in steps) == (snapshot == "1")
    logged = [line.getMessage() for line in caplog.records if line.name == "groundwire.modal"]
    (start,) = [message for message in logged if message.startswith("the start, step by step:")]
    assert {line.split()[0] for line in start.splitlines()[1:]} == steps


@pytest.mark.anyio
async def test_an_engine_that_dies_ends_the_container_behind_its_last_push(
    container: pytest.MonkeyPatch,
) -> None:
    heard, ends, ended = Heard(), [], asyncio.Event()

    def end(status: int) -> None:
        ends.append((status, heard.methods[-1]))
        ended.set()

    container.setattr(os, "_exit", end)
    container.setenv("GROUNDWIRE_SCRIPTED", '{"fail": "dead"}')
    with listening(heard) as port:
        container.setenv("GROUNDWIRE_PUSH_URL", f"http://127.0.0.1:{port}")
        async with running(deploy_file(container, MODE="live")):
            await asyncio.wait_for(ended.wait(), DEADLINE_SECONDS)
    assert ends == [(1, "DELETE")]


@pytest.mark.anyio
async def test_exit_frees_the_directory(container: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with running(deploy_file(container, MODE="live")):
        assert (tmp_path / "data" / "chroma.json").exists()
    assert not (tmp_path / "data" / "chroma.json").exists()


@pytest.mark.anyio
async def test_without_a_key_it_does_not_start(
    container: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    container.delenv("GROUNDWIRE_API_KEYS")
    container_ = Container(deploy_file(container))
    await container_.method("load")()
    with pytest.raises(RuntimeError, match="GROUNDWIRE_API_KEYS"):
        await container_.method("start")()
    assert not (tmp_path / "data").exists()


@contextmanager
def root_log() -> Iterator[logging.Logger]:
    """The root logger as in a process that has set nothing up; pytest has, and anew after the fixtures."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def test_a_container_logs_as_the_settings_say(container: pytest.MonkeyPatch) -> None:
    container.setenv("GROUNDWIRE_LOG_FORMAT", "json")
    module = deploy_file(container)
    with root_log() as root:
        module.container_settings()
        (handler,) = root.handlers
        assert isinstance(handler.formatter, JsonFormatter)
        assert root.level == logging.INFO


# Documents


class Volume:
    """Stands where a Volume of Modal's stands, over a folder; `committed` is what CURRENT said at each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.committed: list[str] = []

    def reload(self) -> None: ...

    def commit(self) -> None:
        current = self.folder / "CURRENT"
        self.committed.append(current.read_text().strip() if current.exists() else "")

    @contextmanager
    def batch_upload(self, *, force: bool) -> Iterator[Volume]:
        assert force
        yield self

    def put_directory(self, local: str, remote: str) -> None:
        shutil.copytree(local, self.folder / remote.lstrip("/"), dirs_exist_ok=True)


class Call:
    """Stands where Modal runs a function elsewhere."""

    def __init__(self, function: Callable[..., None] = lambda: None) -> None:
        self.remote = function
        self.waited_for = False

    def spawn(self) -> Call:
        return self

    def get(self) -> None:
        self.waited_for = True


@pytest.fixture
def writer(container: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The file as the container of `ingest` reads it, with folders for Volumes; no document there yet."""
    module = deploy_file(container)
    for name in ("documents", "index"):
        folder = tmp_path / f"{name}-volume"
        folder.mkdir()
        container.setattr(module, name.upper(), folder)
        container.setattr(module, f"{name}_volume", Volume(folder))
    container.setattr(module, "claims", Dict())
    # An ingest steps back; the tests after this one stay as they are.
    container.setattr(os, "nice", lambda _: 0)
    container.setattr(os, "sched_setscheduler", lambda *_: None)
    return module


def test_a_document_that_cannot_be_read_keeps_nothing_else_from_being_published(
    writer: ModuleType, container: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tea.txt").write_text("Morva tea is steeped for eleven minutes.\n")
    (mine / "broken.pdf").write_bytes(b"not a PDF")
    container.setattr(writer, "ingest", Call(writer.ingest._get_source_info().raw_f))
    weights = Call()
    container.setattr(writer, "download_weights", weights)
    with pytest.raises(RuntimeError, match=r"groundwire ingest .* ended with status 1"):
        writer.publish.info.raw_f(str(mine))
    assert writer.index_volume.committed == ["v-1"]
    assert weights.waited_for


class Dict:
    """Stands where a Dict of Modal's stands."""

    def __init__(self) -> None:
        self.kept: dict[str, float] = {}

    def put(self, key: str, value: float, *, skip_if_exists: bool) -> bool:
        assert skip_if_exists
        return self.kept.setdefault(key, value) is value

    def get(self, key: str) -> float | None:
        return self.kept.get(key)

    def pop(self, key: str) -> float:
        return self.kept.pop(key)


def test_one_ingest_publishes_at_a_time(writer: ModuleType) -> None:
    ingest = writer.ingest._get_source_info().raw_f
    with writer.only_writer():
        with pytest.raises(RuntimeError, match="another ingest has been at work for 0 s"):
            ingest()
        assert writer.index_volume.committed == []
    (writer.DOCUMENTS / "tea.txt").write_text("Morva tea is steeped for eleven minutes.\n")
    ingest()
    assert writer.index_volume.committed == ["v-1"]
    assert writer.claims.kept == {}


def test_a_claim_that_a_killed_ingest_left_is_passed_over_by_one(writer: ModuleType) -> None:
    left = time.time() - writer.CLAIM_SECONDS - 1
    writer.claims.kept["writer"] = left
    for _ in range(2):
        with (
            writer.only_writer(),
            pytest.raises(RuntimeError, match="modal dict clear groundwire-writer"),
        ):
            writer.only_writer().__enter__()
        assert writer.claims.kept == {"writer": left}


def test_a_command_that_fails_fails_its_function(container: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"groundwire smoke http://127\.0\.0\.1:9.*status 1"):
        deploy_file(container).groundwire("smoke", "http://127.0.0.1:9")

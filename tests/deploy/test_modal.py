"""`modal_deploy.py`: what it asks Modal for, and its app from enter to exit, without Modal's network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import modal_deploy

ROOT = Path(__file__).parents[2]
#: What Modal's proxy calls the app by.
HOST = "workspace--groundwire-server-web.modal.run"
KEY = "sk-modal"


class Container:
    """Stands where Modal's instance of the class stands; the methods are the file's own."""

    def __init__(self) -> None:
        self._class = modal_deploy.Server._get_user_cls()

    def method(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._class, name)._get_raw_f()
        return lambda: function(self)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A container's variables, as the image sets them, with the scripted engine."""
    for name in [name for name in os.environ if name.startswith("GROUNDWIRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GROUNDWIRE_ENGINE", "scripted")
    monkeypatch.setenv("GROUNDWIRE_DATA_DIR", str(tmp_path / "data"))
    return monkeypatch


@pytest.mark.anyio
async def test_the_class_serves_the_app_and_closes_it(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("GROUNDWIRE_API_KEYS", KEY)
    container = Container()
    await container.method("start")()
    try:
        app = container.method("web")()
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=f"https://{HOST}") as client,
        ):
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/ready")).json()["status"] == "ready"
            body = {"messages": [{"role": "user", "content": "hi"}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
            headers = {"authorization": f"Bearer {KEY}"}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
    finally:
        await container.method("stop")()
    # Chroma is gone with the container: the directory's lock is free, its address withdrawn.
    assert not (tmp_path / "data" / "chroma.json").exists()


@pytest.mark.anyio
@pytest.mark.usefixtures("environment")
async def test_without_a_key_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="GROUNDWIRE_API_KEYS"):
        await Container().method("start")()
    assert not (tmp_path / "data").exists()


def test_what_the_class_asks_modal_for() -> None:
    asked = modal_deploy.Server._get_class_service_function()._spec_
    assert asked.gpus == "A10G"
    assert set(asked.volumes) == {"/weights", "/index"}
    assert [repr(secret) for secret in asked.secrets] == ["modal.Secret.from_name('groundwire')"]
    assert asked.cpu
    assert asked.memory


def test_ingestion_needs_no_gpu_and_sees_the_documents() -> None:
    asked = modal_deploy.ingest._spec_
    assert asked.gpus is None
    assert set(asked.volumes) == {"/documents", "/index"}


def test_the_image_has_the_gpu_pins() -> None:
    assert "vllm==0.32.0" in modal_deploy.PINS
    assert all("==" in pin for pin in modal_deploy.PINS)


def test_the_packages_are_python_alone() -> None:
    """Modal mounts `.py` files and no others: data in a package would be missing there, and only there."""
    for package in ("server", "retrieval"):
        files = [p for p in (ROOT / package).rglob("*") if p.is_file()]
        others = {p.name for p in files if p.suffix not in (".py", ".pyc")}
        assert others <= {"py.typed"}

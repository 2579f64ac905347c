"""services: what a start refuses, and what is opened beside an engine that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.scripted import Script, ScriptedEngine
from server.services import open_services
from server.settings import Settings, SettingsError

#: Nothing listens here: a start that went on would fail with another error.
SHARED = "postgresql+asyncpg://postgres@127.0.0.1:9/nothing"


@pytest.mark.anyio
async def test_a_shared_catalog_with_keys_needs_a_signing_secret(tmp_path: Path) -> None:
    settings = Settings(
        engine="scripted", data_dir=tmp_path / "data", catalog_url=SHARED, api_keys=["k"]
    )
    with pytest.raises(SettingsError, match="GROUNDWIRE_SIGNING_SECRET, the same on all servers"):
        async with open_services(settings):
            pytest.fail("it started all the same")
    assert not (tmp_path / "data").exists()


@pytest.mark.anyio
async def test_upstreams_are_opened_beside_an_engine_that_is_there_already(tmp_path: Path) -> None:
    far = {"name": "far", "url": "http://127.0.0.1:9", "models": ["big"], "max_model_len": 99}
    settings = Settings(data_dir=tmp_path / "data", engines=[far])
    woken = ScriptedEngine(Script(model="own"))
    async with open_services(settings, engine=woken) as services:
        assert list(services.engines) == ["vllm", "far"]
        assert services.models.chat == ("own", "big")

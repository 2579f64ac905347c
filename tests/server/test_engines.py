"""Engines as the settings name them: which is first, what an upstream that is away means, which names fit."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.engine.base import EngineError, EngineUnreachable, ModelCard
from server.engines import begin_engines
from server.services import model_names
from server.settings import Settings, SettingsError
from server.start import StartTrace

AWAY = {"name": "far", "url": "http://127.0.0.1:9"}
NAMED = {**AWAY, "models": ["big"], "max_model_len": 99}
ROUTING = {"small": "own", "large": "big"}
CARDS = [ModelCard("own", 0, "x", 10), ModelCard("big", 0, "x", 99)]


def opened(*upstreams: dict[str, Any], engine: Any = "scripted") -> dict[str, list[str]]:
    """The engines that such settings open, with their models."""

    async def run() -> dict[str, list[str]]:
        settings = Settings(engine=engine, scripted={"model": "own"}, engines=list(upstreams))
        async with begin_engines(settings, lambda _: None, StartTrace()) as ready:
            engines = await ready()
            return {name: [card.id for card in await one.models()] for name, one in engines.items()}

    return asyncio.run(run())


def test_the_one_in_the_process_is_first() -> None:
    assert list(opened().items()) == [("scripted", ["own"])]
    assert list(opened(NAMED).items()) == [("scripted", ["own"]), ("far", ["big"])]
    second = {**NAMED, "name": "farther", "models": ["a", "b"]}
    assert list(opened(NAMED, second, engine="upstream").items()) == [
        ("far", ["big"]),
        ("farther", ["a", "b"]),
    ]


@pytest.mark.parametrize("missing", ["models", "max_model_len"])
def test_one_that_is_away_and_must_be_asked_says_what_to_set(missing: str) -> None:
    asked = {name: value for name, value in NAMED.items() if name != missing}
    with pytest.raises(EngineUnreachable, match=r"'far' cannot be reached.*`max_model_len` set"):
        opened(asked)


def test_routing_is_between_models_that_there_are() -> None:
    names = model_names(Settings(routing=ROUTING), CARDS, "e")
    assert names.routing is not None
    assert names.chatting == ("own", "big", "auto")
    assert model_names(Settings(), CARDS, "e").chatting == ("own", "big")
    with pytest.raises(
        SettingsError, match=r"routing.large: no engine serves 'b'; there is own, big"
    ):
        model_names(Settings(routing={**ROUTING, "large": "b"}), CARDS, "e")
    auto = ModelCard("auto", 0, "x", 10)
    with pytest.raises(SettingsError, match="a model named 'auto'"):
        model_names(Settings(routing=ROUTING), [*CARDS, auto], "e")


def test_a_flag_that_would_do_nothing_is_refused_before_anything_is_loaded() -> None:
    async def run() -> None:
        settings = Settings(model="a-folder", vllm_args=["--api-key", "secret"])
        async with begin_engines(settings, lambda _: None, StartTrace()):
            pytest.fail("it began all the same")

    with pytest.raises(EngineError, match="--api-key is vLLM's"):
        asyncio.run(run())


def test_another_process_of_this_one_is_not_taken_for_vllm_s() -> None:
    """Neither does the wait end at its sight, nor is it ended when the load is given up."""

    async def run() -> None:
        settings = Settings(model="a-folder", vllm_args=["--api-key", "secret"])
        loads = threading.Event()  # not before the wait has had a look
        asyncio.get_running_loop().call_later(0.2, loads.set)
        async with begin_engines(settings, lambda _: loads.wait(60) and None, StartTrace()):
            pytest.fail("it began all the same")

    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with pytest.raises(EngineError, match="--api-key is vLLM's"):
            asyncio.run(run())
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def test_how_vllm_logs_is_written_before_anything_else_has_made_the_directory(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        settings = Settings(
            model="a-folder",
            vllm_args=["--api-key", "secret"],  # refused before vLLM is imported
            data_dir=tmp_path / "new" / "data",
            log_format="json",
        )
        async with begin_engines(settings, lambda _: None, StartTrace()):
            pytest.fail("it began all the same")

    with pytest.raises(EngineError, match="--api-key"):
        asyncio.run(run())
    assert json.loads((tmp_path / "new" / "data" / "vllm-logging.json").read_text())["handlers"]

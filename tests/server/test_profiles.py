"""Profiles: a layer of settings between the file and the defaults, each of them valid."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from server.profiles import FOLDER, NAMES, load_profile, profile_of
from server.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GROUNDWIRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_is_a_profile() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_valid(name: str) -> None:
    settings, profile = load_settings({"profile": name}), load_profile(name)
    assert settings.model == profile.model
    assert settings.vllm_args[-len(profile.vllm_args) :] == list(profile.vllm_args)
    for field, value in profile.settings.items():
        assert getattr(settings, field) == (value or None)
    assert profile.revision is None or re.fullmatch(r"[0-9a-f]{40}", profile.revision)
    # An A10G has no FP8.
    assert not any("fp8" in arg for arg in settings.vllm_args)


def test_all_that_is_set_elsewhere_wins(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({"profile": "tinyllama"}).max_context_tokens == 768
    (bare / "groundwire.toml").write_text(
        'profile = "tinyllama"\nmax_context_tokens = 5\ntop_k = 6\n'
    )
    monkeypatch.setenv("GROUNDWIRE_TOP_K", "7")
    settings = load_settings({"default_max_tokens": "9"})
    assert (settings.max_context_tokens, settings.top_k) == (5, 7)
    assert (settings.default_max_tokens, settings.answer_reserve_tokens) == (9, 256)
    assert settings.rrf_k == Settings.model_fields["rrf_k"].default


def test_a_variable_chooses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_PROFILE", "qwen3-8b")
    settings = load_settings()
    assert settings.model == "Qwen/Qwen3-8B-AWQ"
    assert settings.vllm_args[:2] == ["--revision", "4da05a8edb55c6046cce958586c33b61da07bb79"]


def test_own_flags_follow_the_profile_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_VLLM_ARGS", "--max-model-len 512")
    args = load_settings({"profile": "tinyllama"}).vllm_args
    assert args[-2:] == ["--max-model-len", "512"]
    assert args[:2] == ["--revision", load_profile("tinyllama").revision]


def test_another_model_is_not_given_the_profile_s_revision() -> None:
    settings = load_settings({"profile": "tinyllama", "model": "/models/copy"})
    assert settings.model == "/models/copy"
    assert "--revision" not in settings.vllm_args
    assert "--max-model-len" in settings.vllm_args


def test_only_vllm_is_given_vllm_s_flags() -> None:
    settings = load_settings({"profile": "tinyllama", "engine": "scripted"})
    assert (settings.vllm_args, settings.top_k) == ([], 2)


def test_an_unknown_profile_lists_those_that_there_are() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"profile": "gpt-5"})
    message = str(caught.value)
    assert message.startswith("profile: no such profile: 'gpt-5'")
    assert all(name in message for name in NAMES)


def test_no_profile_is_none() -> None:
    assert load_settings({"profile": ""}).profile is None


def test_a_bad_flag_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_VLLM_ARGS", "'")
    with pytest.raises(SettingsError, match="vllm_args"):
        load_settings({"profile": "tinyllama"})


def test_a_profile_is_found_by_its_model() -> None:
    found = profile_of("Qwen/Qwen3-8B-AWQ")
    assert found is not None
    assert found.name == "qwen3-8b"
    assert profile_of("someone/else") is None

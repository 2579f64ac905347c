"""Weights from the hub: which revision, and what is said where there is no hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.weights import WeightsError, download_weights, revision_in

GROUNDWIRE = Path(sys.executable).with_name("groundwire")


@pytest.mark.parametrize(
    ("args", "revision"),
    [
        ([], None),
        (["--max-model-len", "4096"], None),
        (["--revision", "abc", "--max-model-len", "4096"], "abc"),
        (["--revision=abc"], "abc"),
        (["--revision", "the-profile-s", "--revision=mine"], "mine"),
        (["--revision"], None),
    ],
)
def test_the_revision_is_vllm_s(args: list[str], revision: str | None) -> None:
    assert revision_in(args) == revision


def test_a_name_that_no_hub_has_is_refused() -> None:
    with pytest.raises(WeightsError, match="neither a folder nor a name on the model hub"):
        download_weights("no/such/name", None)


def setup(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The command with a hub that nobody answers for."""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [str(GROUNDWIRE), "setup", "--embedder", str(tmp_path), *flags]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


def test_without_a_hub_it_says_so_and_ends_with_1(tmp_path: Path) -> None:
    done = setup(tmp_path, "--model", "some/model")
    assert done.returncode == 1
    assert "some/model could not be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_needs_no_hub(tmp_path: Path) -> None:
    done = setup(tmp_path, "--model", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path)] * 2

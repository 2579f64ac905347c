"""`groundwire plan`, as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import main
from server.profiles import NAMES

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GROUNDWIRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_profile(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "plan --gpu A10G --profile qwen3-4b --prompt-tokens 1500 --output-tokens 200 --qps 2"
    assert main(asked.split()) == 0
    said = capsys.readouterr().out
    for words in (
        "predicted",
        "weights",
        "first token",
        "cold start",
        "a month, 1 warm",
        "KiB a token",
    ):
        assert words in said
    assert list(Path.cwd().iterdir()) == []  # no data directory for a question


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--profile", "mistral-7b", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["predicted"], plan["gpu"], plan["fits"]) == (True, "A10G", True)
    assert plan["memory"]["weights_bytes"] == pytest.approx(4.16e9, rel=0.01)


def test_without_a_model_all_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "T4"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert "Predicted on T4" in said
    assert main(["plan", "--json"]) == 0
    assert [plan["subject"] for plan in json.loads(capsys.readouterr().out)] == list(NAMES)


def test_what_does_not_fit_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDWIRE_VLLM_ARGS", "--max-model-len 250000")
    assert main(["plan", "--profile", "qwen3-4b-bf16"]) == 1
    assert "will hardly fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--gpu", "GTX"], 2, "A10G"),
        (["--qps", "0"], 2, "--qps"),
        (["--prompt-tokens", "0"], 2, "--prompt-tokens"),
        (["--profile", "gpt-5"], 2, "tinyllama"),
        (["--model", "some/model"], 1, "no folder and no profile's model"),
        (["--model", "."], 1, "config.json"),
    ],
)
def test_what_is_wrong_is_named(
    argv: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *argv]) == status
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_it_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom server.cli import main\n"
        "assert main(['plan', '--profile', 'qwen3-4b']) == 0\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    listed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    heavy = {"torch", "vllm", "transformers", "numpy", "fastapi", "sqlalchemy", "chromadb", "modal"}
    assert heavy & set(listed) == set()

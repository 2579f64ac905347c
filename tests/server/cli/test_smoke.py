"""`groundwire smoke` against a server that listens."""

from __future__ import annotations

import json

import pytest

from server.cli import main
from tests.server.api.bench import Bench

KEY = "sk-smoke"
ROWS = ("embedding", "retrieval", "LLM", "network and the rest", "total")


def smoke(monkeypatch: pytest.MonkeyPatch, *words: str, key: str = KEY) -> int:
    monkeypatch.setenv("GROUNDWIRE_API_KEYS", key)
    return main(["smoke", *words])


def test_it_asks_and_shows_the_stages(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench.serve(default_store="docs", api_keys=[KEY]) as running:
        assert smoke(monkeypatch, f"{running.url}/v1", "--question", "Who steeps Morva tea?") == 0
        shown = capsys.readouterr().out
        assert "tea.txt" in shown
        assert [line.rsplit(maxsplit=2)[0] for line in shown.splitlines()[-5:]] == list(ROWS)

        assert smoke(monkeypatch, running.url, "--store", "docs", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert tuple(found["rows"]) == ROWS
        assert found["rows"]["total"] == found["seconds"] > 0


def test_what_is_too_slow_or_refused_ends_with_1(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench.serve(default_store="docs", api_keys=[KEY]) as running:
        assert smoke(monkeypatch, running.url, "--max-seconds", "0") == 1
        assert "more than 0" in capsys.readouterr().err
        assert smoke(monkeypatch, running.url, "--question", "Who won the 1966 World Cup?") == 1
        assert "ask one that the documents answer, with --question" in capsys.readouterr().err
        assert smoke(monkeypatch, running.url, key="sk-wrong") == 1
        assert "answered 401" in capsys.readouterr().err
    assert smoke(monkeypatch, running.url) == 1
    assert "groundwire smoke: " in capsys.readouterr().err

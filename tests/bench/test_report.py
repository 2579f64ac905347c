"""From figures to tables: what is printed is what was measured, and a page keeps its prose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import TRIAL, destinations, parse
from bench.figures import once, ratio, value
from bench.history import before_and_after
from bench.plots import plots
from bench.report import (
    DOCS,
    END,
    FILE,
    ROOT,
    START,
    filled,
    pages,
    publish,
    rows,
    save,
    sentence,
    tables,
)
from bench.stats import Target

CONDITIONS = {
    "date": "2026-01-01", "cpu": "a CPU", "cores": 2, "load_at_start": 0.1, "commit": "abc1234",
    "versions": {"vllm": "0.32.0"}, "dirty": False, "engine": "vllm", "model": "a model",
    "compiled": True, "answer_tokens": 32, "store_passages": 10_000, "rounds": 3,
}  # fmt: skip


def entry(**changes: Any) -> dict[str, Any]:
    figures = [
        ratio("TTFT", "ms", ("Groundwire", [2, 2, 2]), ("bare vLLM", [4, 4, 4]), Target(high=1.02)),
        value("searches", "requests/s", [400, 400, 400], Target(low=350), at_once=16),
    ]
    as_json = json.loads(json.dumps([figure.as_json() for figure in figures]))
    as_saved = {"title": "a scenario", "trial": False, "figures": as_json}
    return {**as_saved, "conditions": CONDITIONS, **changes}


def test_a_row_has_both_sides_the_interval_the_target_and_the_verdict() -> None:
    first, second = rows(entry())
    assert "| 2.000 | 4.000 (bare vLLM) | 0.500 × (0.500 – 0.500) | ≤ 1.02 | met |" in first
    assert "| 16 | searches (requests/s) | 400 |  | 400 requests/s" in second
    assert second.endswith("| ≥ 350 | met |")


def test_a_scenario_that_failed_says_why_and_has_no_number() -> None:
    failed = {"title": "a scenario", "error": "no such route"}
    assert rows(failed) == ["| a scenario | | not measured: no such route | | | | | |"]


def test_the_conditions_say_what_they_are_worth() -> None:
    assert "measures nothing" in sentence(entry(trial=True))
    assert "vLLM 0.32.0 (compiled), a model" in sentence(entry())
    assert "no language model" in sentence(entry(conditions={**CONDITIONS, "engine": "scripted"}))
    assert "with changes" in sentence(entry(conditions={**CONDITIONS, "dirty": True}))


def test_scenarios_of_other_conditions_get_a_table_of_their_own() -> None:
    later = entry(conditions={**CONDITIONS, "commit": "def5678"})
    text = tables({"scenarios": {"one": entry(), "two": later}})
    assert text.count("Measured 2026-01-01") == 2


def test_a_page_keeps_what_stands_around_the_markers() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    assert filled(page, "new") == f"before\n{START}\nnew\n{END}\nafter\n"


def test_a_page_without_markers_is_not_written_over() -> None:
    with pytest.raises(ValueError, match="the page has no"):
        filled("a page\n", "new")


def test_a_partial_run_keeps_the_other_scenarios(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    save({"scenarios": {"one": entry()}}, docs)
    save({"scenarios": {"two": entry(title="another")}}, docs)
    assert list(json.loads((docs / FILE).read_text())["scenarios"]) == ["one", "two"]
    for page in ("README.md", "docs/performance.md"):
        (tmp_path / page).write_text(f"{START}\n{END}\n")
    publish(tmp_path)
    assert "another" in (tmp_path / "README.md").read_text()


def test_one_run_shows_no_interval() -> None:
    figure = once("recovery", "s", 0.8, Target(high=5)).as_json()
    assert rows(entry(figures=[figure])) == [
        "| a scenario | 1 | recovery (s) | 0.800 |  | one run | ≤ 5 | met |"
    ]


def test_the_readme_has_what_has_a_target() -> None:
    untold = value("of that, Chroma", "ms", [3, 3]).as_json()
    shown = pages({"scenarios": {"one": entry(figures=[*entry()["figures"], untold])}})
    assert "of that, Chroma" in shown["docs/performance.md"]
    assert "of that, Chroma" not in shown["README.md"]
    assert "searches" in shown["README.md"]


def test_a_question_before_and_after_is_told_from_the_measured_stages() -> None:
    seconds = {"embed": 8, "search": 5, "fuse": 1, "prefill": 1900, "decode": 800}
    stages = [value(stage, "ms", [ms, ms]).as_json() for stage, ms in seconds.items()]
    text = before_and_after({"scenarios": {"stages": entry(figures=stages)}})
    assert "2 cores of a CPU with a model" in text
    assert "| retrieval | 2-5 s | 6.0 ms |" in text
    assert "| inference | 15-30 s | 2.7 s |" in text
    assert "| total | more than a minute | 2.7 s |" in text
    assert before_and_after({"scenarios": {"off": entry()}}) == ""


def test_only_what_was_measured_goes_into_the_docs() -> None:
    results = {
        "scenarios": {
            "one": entry(), "two": entry(trial=True), "three": {**entry(), "error": "it broke"},
        }
    }  # fmt: skip
    found = destinations(results, parse([]))
    assert {path: list(kept["scenarios"]) for path, kept in found.items()} == {
        DOCS: ["one"], TRIAL: ["two", "three"],
    }  # fmt: skip
    elsewhere = destinations(results, parse(["--out", "/elsewhere"]))
    assert list(elsewhere) == [Path("/elsewhere")]


def test_the_pages_say_what_the_saved_numbers_say() -> None:
    results = json.loads((DOCS / FILE).read_text(encoding="utf-8"))
    for name, text in pages(results).items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert filled(page, text) == page, f"{name}: run `python -m bench.report`"
    for name, svg in plots(results).items():
        assert (DOCS / name).read_text(encoding="utf-8") == svg


def test_scenarios_are_chosen_by_name() -> None:
    assert parse(["--only", "off,grounded"]).only == ["off", "grounded"]
    with pytest.raises(SystemExit):
        parse(["--only", "of"])


def test_a_contender_has_a_name_and_a_url() -> None:
    assert parse(["--vs", "other=http://127.0.0.1:1/v1"]).vs == [("other", "http://127.0.0.1:1/v1")]
    twice = ["--vs", "a=http://127.0.0.1:1", "--vs", "a=http://127.0.0.1:2"]
    ours, unnamed = ["--vs", "Groundwire=http://127.0.0.1:1"], ["--vs", "http://127.0.0.1:1"]
    for bad in (unnamed, twice, ours, ["--vs-model", "other=a-model"]):
        with pytest.raises(SystemExit):
            parse(bad)

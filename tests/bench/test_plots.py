"""The plots say what the JSON says, the same bytes each time, as well-formed SVG."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from bench.figures import ratio, value
from bench.plots import Bar, bars, plots
from bench.scenarios import start
from bench.scenarios.start import Started, Step

SVG = "{http://www.w3.org/2000/svg}"


def results() -> dict[str, Any]:
    ours, bare, other = ("Groundwire", [9, 9]), ("bare vLLM", [10, 10]), ("a <b>", [5, 5])
    off = [
        ratio("throughput", "tokens/s", ours, side, at_once=8).as_json() for side in (bare, other)
    ]
    stages = [
        value(stage, "ms", [ms, ms]).as_json() for stage, ms in (("embed", 4), ("prefill", 900))
    ]
    return {"scenarios": {"off": {"figures": off}, "stages": {"figures": stages}}}


def texts(svg: str) -> list[str]:
    return [str(node.text) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_only_what_was_measured_is_drawn() -> None:
    assert set(plots(results())) == {"throughput.svg", "latency-by-stage.svg"}
    assert plots({"scenarios": {"off": {"error": "no engine"}}}) == {}


def test_each_contender_has_one_bar_and_its_number() -> None:
    assert texts(plots(results())["throughput.svg"])[1:] == [
        "Groundwire, 8 at once", "9", "bare vLLM, 8 at once", "10", "a <b>, 8 at once", "5",
    ]  # fmt: skip


def test_the_prefill_does_not_dwarf_what_comes_before_it() -> None:
    assert texts(plots(results())["latency-by-stage.svg"])[1:] == ["embed", "4"]


def test_lengths_are_in_proportion() -> None:
    svg = ElementTree.fromstring(bars("title", "ms", [Bar("long", 8), Bar("short", 2, plain=True)]))
    widths = [float(str(bar.get("width"))) for bar in svg.iter(f"{SVG}rect")]
    assert widths[0] == 4 * widths[1]


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert plots(results()) == plots(results())


def test_nothing_measured_as_zero_breaks_it() -> None:
    assert "0" in texts(bars("title", "ms", [Bar("nothing", 0)]))


def test_a_bar_begins_where_its_step_did() -> None:
    svg = ElementTree.fromstring(bars("title", "s", [Bar("one", 10), Bar("two", 5, begin=10)]))
    one, two = [
        (float(str(b.get("x"))), float(str(b.get("width")))) for b in svg.iter(f"{SVG}rect")
    ]
    assert two[0] == pytest.approx(one[0] + one[1], abs=0.1)
    assert one[1] == pytest.approx(2 * two[1], abs=0.1)


def test_the_steps_of_a_start_are_drawn() -> None:
    steps = {"engine": Step(2.0, 30.0), "chroma": Step(3.0, 1.5)}
    ours, bare = [Started(33.0, 0.5, steps)] * 2, [Started(30.0)] * 2
    figures = [figure.as_json() for figure in start.figures(ours, bare)]
    svg = plots({"scenarios": {"start": {"figures": figures}}})["start-by-step.svg"]
    assert texts(svg)[1:] == ["engine", "30", "chroma", "1.5"]

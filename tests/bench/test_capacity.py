"""docs/capacity.md says what `groundwire plan` computes, and its plot draws it."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.capacity import PAGE, PLOT, measured, page, plans, plot
from bench.figures import ratio, value
from bench.report import DOCS, FILE, filled
from bench.scenarios.plan import FACTOR, cpu, read_bandwidth
from tests.bench.test_report import CONDITIONS


def test_the_page_is_what_is_computed() -> None:
    results = json.loads((DOCS / FILE).read_text(encoding="utf-8"))
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    assert filled(text, page(results)) == text, "run `python -m bench.capacity`"
    assert (DOCS / PLOT).read_text(encoding="utf-8") == plot()


def test_every_profile_has_a_row_and_its_own_words() -> None:
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    for plan in plans():
        assert len(re.findall(rf"^\| `{plan.subject}` \|", text, re.MULTILINE)) == 2


def test_the_page_s_factor_is_the_bench_s() -> None:
    assert f"factor of {FACTOR:g}" in (DOCS / PAGE).read_text(encoding="utf-8")


def test_what_was_measured_is_told_with_its_conditions() -> None:
    figures: list[dict[str, Any]] = [
        ratio("a token", "ms", ("bare vLLM", [30, 30]), ("predicted", [20, 20])).as_json(),
        value("reading memory", "GB/s", [10, 10]).as_json(),
    ]
    scenario = {"title": "plan", "trial": False, "figures": figures, "conditions": CONDITIONS}
    told = measured({"scenarios": {"plan": scenario}})
    assert "30.0 ms where the roofline predicts 20.0 ms" in told
    assert "1.50 times" in told
    assert "Not yet measured" in measured({"scenarios": {}})


def test_bandwidth_is_measured_in_bytes() -> None:
    found = read_bandwidth(2**24)
    assert 1e8 < found < 1e12
    assert cpu(found, 30).bandwidth == found

"""The tables in docs/quality.md say what docs/quality.json says, which the instrument wrote."""

from __future__ import annotations

import json

from bench.quality.tables import FILE, PAGE, rendered
from bench.report import ROOT


def test_the_tables_are_what_was_measured() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert page == rendered(page, json.loads((ROOT / FILE).read_text(encoding="utf-8")))

"""The rules: each alert explained, and tested in both ways. `make debian` runs promtool's tests themselves."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.grafana.known import FOLDER, ROOT, rules

ALERTS = rules("alerts.yml")
EACH = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def anchors(page: str) -> set[str]:
    """What a link may name after `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH
def test_an_alert_leads_to_its_section(alert: dict[str, Any]) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(page)
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description"} <= alert["annotations"].keys()


def test_there_is_no_section_of_an_alert_that_is_gone() -> None:
    sections = {
        anchor for anchor in anchors("docs/operations.md") if anchor.startswith("groundwire")
    }
    assert sections == {alert["alert"].lower() for alert in ALERTS}


@EACH
def test_an_alert_is_tested_firing_and_silent(alert: dict[str, Any]) -> None:
    files = [yaml.safe_load(path.read_text()) for path in (FOLDER / "rules" / "tests").iterdir()]
    tried = [
        bool(one.get("exp_alerts"))
        for file in files
        for test in file["tests"]
        for one in test.get("alert_rule_test", ())
        if one["alertname"] == alert["alert"]
    ]
    assert set(tried) == {True, False}

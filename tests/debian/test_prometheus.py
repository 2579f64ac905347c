"""Every expression of every panel, rule and alert, asked of a real Prometheus that has scraped real servers.

The pages that are drawn of it show what an operator sees; `--pictures` keeps them in `docs/dashboards/`.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafana.__main__ import DASHBOARDS
from grafana.preview import page
from tests.debian.observed import Observed, observing
from tests.debian.traffic import TRACE_ID
from tests.grafana.known import FOLDER, ROOT, rules

pytestmark = pytest.mark.debian

RULES = sorted((FOLDER / "rules").glob("*.yml"))
EVERY_BOARD = pytest.mark.parametrize("uid", [board.uid for board in DASHBOARDS])
#: Panels that may stay at 0: no alert need fire within a minute, and a small model's KV cache is nearly empty.
RESTING = {"Alerts", "Preemptions"}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, pushgateway: str) -> Iterator[Observed]:
    with observing(tmp_path_factory.mktemp("observed"), pushgateway) as everything:
        yield everything


def promtool(*args: str | Path) -> None:
    done = subprocess.run(["promtool", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", *RULES)


def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", *sorted((FOLDER / "rules" / "tests").glob("*.yml")))


def numbers(answers: list[Any]) -> list[float]:
    """All values of a panel's series that are numbers."""
    values = [
        float(value) for one in answers for series in one["series"] for _, value in series["values"]
    ]
    return [value for value in values if math.isfinite(value)]


@EVERY_BOARD
def test_every_panel_shows_what_the_traffic_moves(observed: Observed, uid: str) -> None:
    board, found = observed.boards[uid]
    still = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        for target, answer in zip(panel["targets"], found[str(panel["id"])], strict=True):
            values = numbers([answer])
            if not values or (panel["title"] not in RESTING and not any(values)):
                still.append(f"{panel['title']}: {target['expr']}")
    assert not still, "\n".join(still)


@pytest.mark.parametrize("rule", rules("recording.yml"), ids=lambda rule: rule["record"])
def test_every_recording_rule_records(observed: Observed, rule: dict[str, Any]) -> None:
    at = observed.span.end
    assert observed.prometheus.instant(rule["expr"], at)
    assert observed.prometheus.instant(rule["record"], at)


def compared(expr: str) -> str:
    """The expression with each comparison as 0 or 1, so that it has a value also where nothing is wrong."""
    parts = re.split(r"(\{[^}]*\})", expr)
    return "".join(
        part if part.startswith("{") else re.sub(r"\s(==|!=|<=|>=|<|>)\s", r" \1 bool ", part)
        for part in parts
    )


def watched(expr: str) -> list[str]:
    """What an alert looks at: each side of an `or` or `unless` outside of parentheses, with what `absent` misses."""
    sides = re.split(r"\s(?:or|unless)\s(?:on \([^)]*\)\s)?", expr)
    return [compared(side.replace("absent(", "count(")) for side in sides]


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_every_alert_sees_what_it_watches(observed: Observed, rule: dict[str, Any]) -> None:
    for side in watched(rule["expr"]):
        assert observed.prometheus.instant(side, observed.span.end), side


def test_no_rule_fails(observed: Observed) -> None:
    groups = observed.prometheus.get("/rules")["groups"]
    unwell = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    assert not unwell
    assert sum(len(group["rules"]) for group in groups) == len(rules("recording.yml")) + len(
        rules("alerts.yml")
    )


@pytest.mark.parametrize("name", ["request_duration", "time_to_first_token", "stage_duration"])
def test_a_dot_leads_to_the_request_s_trace(observed: Observed, name: str) -> None:
    found = observed.prometheus.exemplars(f"groundwire_{name}_seconds_bucket", observed.span)
    assert {exemplar["labels"]["trace_id"] for exemplar in found} == {TRACE_ID}


@EVERY_BOARD
def test_the_page_draws_every_panel(
    observed: Observed, uid: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    board, found = observed.boards[uid]
    html = tmp_path / f"{uid}.html"
    html.write_text(page(board, found, observed.span))
    shown = chromium("--dump-dom", str(html))
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', shown))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert (told["empty"], int(told["filled"])) == ("", len(panels))
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", shown, flags=re.DOTALL)

    picture = tmp_path / f"{uid}.png"
    chromium(f"--screenshot={picture}", f"--window-size=1400,{int(told['height']) + 8}", str(html))
    small = smaller(picture)
    assert len(small) > 10_000
    if request.config.getoption("--pictures"):
        (ROOT / "docs" / "dashboards" / f"{uid.removeprefix('groundwire-')}.png").write_bytes(small)


def chromium(*args: str) -> str:
    """What a headless Chromium prints."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,900",
    ]
    done = subprocess.run(
        [*command, *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def smaller(picture: Path) -> bytes:
    """The picture in 64 colours, which are enough for it."""
    import io

    from PIL import Image

    with Image.open(picture) as image:
        out = io.BytesIO()
        image.convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()

"""Docs are tests: what exists is in the docs, and what the docs show works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from server.app import create_app
from server.engine.scripted import Script
from server.routing import Reason
from server.settings import RoutingSettings, Settings
from server.telemetry.catalogue import with_table
from server.telemetry.metrics import Metrics, new_registry
from server.wire.chat import RagOptions

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def rows(page: str) -> dict[str, str]:
    """First cells of a page's tables -> the whole row; a cell may name several things."""
    found = {}
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                found[name] = line
    return found


def test_every_setting_is_documented_and_no_other() -> None:
    assert set(rows("settings.md")) == set(Settings.model_fields)


def test_setting_descriptions_are_the_code_s() -> None:
    for name, row in rows("settings.md").items():
        assert (Settings.model_fields[name].description or "?") in row


def test_the_table_of_metrics_is_the_code_s() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    made = with_table(page, Metrics(new_registry()).definitions)
    assert page == made, "run `python -m server.telemetry.catalogue docs/metrics.md`"


def test_every_reason_and_number_of_a_route_is_documented() -> None:
    row = rows("metrics.md")["groundwire_routed_requests_total"]
    assert {f"`{reason}`" for reason in get_args(Reason)} <= set(re.findall(r"`\w+`", row))
    engines = rows("engines.md")
    for name, field in RoutingSettings.model_fields.items():
        default = field.default if isinstance(field.default, tuple) else (field.default,)
        assert field.is_required() or all(str(value) in engines[name] for value in default), name


def test_every_rag_option_is_documented() -> None:
    documented = {name.partition(".")[0] for name in rows("api.md")}
    assert set(RagOptions.model_fields) <= documented


def test_every_script_field_is_documented() -> None:
    assert set(Script.__dataclass_fields__) <= set(rows("engines.md"))


def test_every_route_is_documented_or_internal() -> None:
    text = (ROOT / "docs" / "api.md").read_text() + (ROOT / "docs" / "engines.md").read_text()
    for route in create_app(Settings()).routes:
        path = re.sub(r"\{(\w+)[^}]*\}", "{}", getattr(route, "path", ""))
        if "{}" in path and not path.startswith(("/v1/models", "/v1/rag")):
            continue  # below a prefix that is listed as not built
        start = path.partition("{")[0].rstrip("/")
        assert start.removesuffix("/batch").removesuffix("/count_tokens") in text, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_s_curl_is_what_serve_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    serve = (ROOT / "server" / "cli" / "serve.py").read_text()
    (body,) = re.findall(r"-d '(\{.*\})'", readme)
    assert body in serve

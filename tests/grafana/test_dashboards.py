"""The dashboards: made by the code, of metrics and labels that exist, with all metrics drawn, and explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from grafana.__main__ import DASHBOARDS, FOLDER
from grafana.build import round_trip, to_json
from grafana.panels import Dashboard, Panel
from retrieval.trace import STAGES
from server.telemetry import buckets
from tests.grafana.expressions import grouped, selectors
from tests.grafana.known import definitions, rules, series

#: Metrics that no dashboard draws, and why.
UNDRAWN = {
    "groundwire_start_step_begin_seconds": "a start's steps beside each other are a table at its end, in the log",
}
EVERY = pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)


def panels(board: Dashboard) -> Iterator[Panel]:
    for row in board.rows:
        yield from row.panels


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the expression: panels, variables, rules."""
    for board in DASHBOARDS:
        for panel in panels(board):
            for query in panel.queries:
                yield f"{board.uid}: {panel.title}", query.expr
    for name in ("recording.yml", "alerts.yml"):
        for rule in rules(name):
            yield f"{name}: {rule.get('record') or rule.get('alert')}", rule["expr"]


@EVERY
def test_the_committed_json_is_what_the_code_makes(board: Dashboard) -> None:
    committed = (FOLDER / f"{board.uid}.json").read_text()
    assert committed == to_json(board), "run `make dashboards`"


def test_there_is_no_other_dashboard() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {board.uid for board in DASHBOARDS}


@EVERY
def test_the_json_survives_the_sdk_s_types(board: Dashboard) -> None:
    committed = (FOLDER / f"{board.uid}.json").read_text()
    assert round_trip(committed) == committed


def test_what_is_read_of_an_expression() -> None:
    expr = 'sum by (le, stage) (rate(a_bucket{x="1", y=~"b|c"}[5m])) / scalar(vector(1) or up) > bool 2e3 and d:e * 0'
    read = [(one.series, one.matchers) for one in selectors(expr)]
    assert read == [("a_bucket", {"x": "1", "y": "b|c"}), ("up", {}), ("d:e", {})]
    assert grouped(expr) == {"le", "stage"}


def test_every_metric_and_label_of_an_expression_exists() -> None:
    assert len(list(expressions())) > 150
    for where, expr in expressions():
        found = selectors(expr)
        of_all: set[str] = set()
        for one in found:
            assert one.series in series(), f"{where}: there is no {one.series}"
            of_all |= series()[one.series]
            unknown = one.matchers.keys() - series()[one.series]
            assert not unknown, f"{where}: {one.series} has no label {unknown}"
        assert grouped(expr) <= of_all, f"{where}: groups by {grouped(expr) - of_all}"


def test_every_bound_of_a_bucket_exists() -> None:
    bounds = {str(float(bound)) for bound in buckets.TTFT}
    asked = [
        str(float(bound))
        for _, expr in expressions()
        for one in selectors(expr)
        for bound in one.matchers.get("le", "").split("|")
        if bound
    ]
    assert asked
    assert set(asked) <= bounds


@EVERY
def test_every_legend_names_labels_that_its_series_have(board: Dashboard) -> None:
    for panel in panels(board):
        for query in panel.queries:
            left = grouped(query.expr) or set().union(
                *(series()[one.series] for one in selectors(query.expr))
            )
            named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            assert named <= left, f"{panel.title}: {query.legend} names {named - left}"


def test_every_variable_names_a_label_that_exists() -> None:
    for board in DASHBOARDS:
        for variable in json.loads(to_json(board))["templating"]["list"]:
            if variable["type"] == "query":
                (metric, label) = re.fullmatch(
                    r"label_values\((.+), (\w+)\)", variable["query"]
                ).groups()  # type: ignore[union-attr]
                assert label in series()[metric]
        used = set(
            re.findall(r"\$(\w+)", " ".join(q.expr for p in panels(board) for q in p.queries))
        )
        known = {"instance", "__rate_interval", *(variable.name for variable in board.variables)}
        assert used <= known, board.uid


def test_every_metric_is_drawn_or_said_not_to_be() -> None:
    drawn = {
        one.series
        for board in DASHBOARDS
        for p in panels(board)
        for q in p.queries
        for one in selectors(q.expr)
    }
    undrawn = {one.name for one in definitions() if not drawn & set(one.series)}
    assert undrawn == set(UNDRAWN)


@EVERY
def test_every_panel_says_what_is_bad_and_what_to_do(board: Dashboard) -> None:
    titles = [panel.title for panel in panels(board)]
    assert len(titles) == len(set(titles))
    for panel in panels(board):
        for text in (panel.shows, panel.bad, panel.do):
            assert len(text) > 3, panel.title
            assert text.endswith("."), f"{panel.title}: {text}"


def test_a_description_names_only_dashboards_panels_and_alerts_that_exist() -> None:
    titles = {panel.title for board in DASHBOARDS for panel in panels(board)}
    titles |= {board.title.partition(": ")[2].capitalize() for board in DASHBOARDS}
    alerts = {rule["alert"] for rule in rules("alerts.yml")}
    for board in DASHBOARDS:
        for panel in panels(board):
            prose = re.sub(r"`[^`]*`", "", panel.description)
            for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", prose):
                assert name in titles | {"Overload", "Quality"}, f"{panel.title} names *{name}*"
            assert set(re.findall(r"`(Groundwire\w+)`", panel.description)) <= alerts, panel.title


def test_the_stages_have_a_row_each_in_pipeline_order() -> None:
    (board,) = [board for board in DASHBOARDS if board.uid == "groundwire-stages"]
    assert [row.title for row in board.rows][1:] == list(STAGES)


def test_every_stage_has_a_colour_of_its_own_in_every_panel() -> None:
    (board,) = [board for board in DASHBOARDS if board.uid == "groundwire-stages"]
    by_stage = [
        panel.colours
        for panel in panels(board)
        if panel.kind in ("lines", "stack") and panel.queries[0].legend == "{{stage}}"
    ]
    assert len(by_stage) == 2
    for colours in by_stage:
        assert tuple(colours) == STAGES
        assert len(set(colours.values())) == len(STAGES)


@EVERY
def test_colours_are_in_the_json_by_the_name_of_the_series(board: Dashboard) -> None:
    made = {panel["title"]: panel for panel in json.loads(to_json(board))["panels"]}
    for panel in panels(board):
        fixed = {
            override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
            for override in made[panel.title].get("fieldConfig", {}).get("overrides", [])
        }
        assert fixed == panel.colours


def test_from_an_alarm_on_a_panel_is_red() -> None:
    panels_ = {p["title"]: p for b in DASHBOARDS for p in json.loads(to_json(b))["panels"]}
    steps = panels_["Chroma restarts"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step.get("value"), step["color"]) for step in steps] == [(None, "green"), (1, "red")]


@EVERY
def test_no_two_panels_overlap(board: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(to_json(board))["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        x, y = place.get("x", 0), place.get("y", 0)
        cells = {(x + i, y + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert x + place["w"] <= 24
        taken |= cells

"""Grafana's own types, and its JSON, of what a dashboard says. The one file that imports the foundation SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from grafana.panels import Dashboard, Panel, Query, Row, Variable

TAG = "groundwire"
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_WIDTH = 24


def to_json(board: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    return _encoded(_dashboard(board))


def round_trip(text: str) -> str:
    """A dashboard's JSON, read into the SDK's types and written again: what they do not know is lost."""
    register_default_plugins()
    return _encoded(models.Dashboard.from_json(json.loads(text)))


def _encoded(built: models.Dashboard) -> str:
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard(board: Dashboard) -> models.Dashboard:
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_link())
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(_variable(Variable("instance", "groundwire_build_info", "instance")))
    )
    for variable in board.variables:
        built.with_variable(_variable(variable))
    ids = count(1)
    for row in board.rows:
        _add_row(built, row, ids)
    return built.build()


def _link() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("Groundwire")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )


def _variable(variable: Variable) -> dashboard.QueryVariable:
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .datasource(DATASOURCE)
        .query(f"label_values({variable.metric}, {variable.label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        # Not the list of all that is there: an instance that has gone stays in the graph.
        .all_value(".*")
        .current(everything)
    )


def _add_row(built: dashboard.Dashboard, row: Row, ids: Iterator[int]) -> None:
    built.with_row(dashboard.Row(row.title).id(next(ids)))
    used = 0
    for panel in row.panels:
        used = (used + panel.width) % GRID_WIDTH
        built.with_panel(_panel(panel, next(ids)))
    assert used == 0, f"the panels of {row.title!r} leave a gap at the right"


def _panel(panel: Panel, number: int) -> Any:
    built: Any = {
        "lines": _lines,
        "stack": _lines,
        "stat": _stat,
        "bars": _bars,
        "heatmap": _heatmap,
    }[panel.kind](panel)
    built.id(number).title(panel.title).description(panel.description).datasource(DATASOURCE)
    built.span(panel.width).height(panel.height)
    for index, query in enumerate(panel.queries):
        built.with_target(_query(query, chr(ord("A") + index), panel))
    return built


def _query(query: Query, ref: str, panel: Panel) -> prometheus.Dataquery:
    built = prometheus.Dataquery().ref_id(ref).expr(query.expr).legend_format(query.legend)
    built.datasource(DATASOURCE).editor_mode(prometheus_models.QueryEditorMode.CODE)
    if query.exemplars:
        built.exemplar(True)
    if panel.kind == "heatmap":
        built.format(prometheus_models.PromQueryFormat.HEATMAP)
    return built.instant() if panel.kind == "bars" else built.range()


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    built = (
        timeseries.Panel()
        .unit(panel.unit)
        .line_width(1)
        .fill_opacity(60 if panel.kind == "stack" else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if not panel.below_zero:
        built.min(0)
    for name, colour in panel.colours.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        built.override_by_name(name, [models.DynamicConfigValue("color", fixed)])
    if panel.kind == "stack":
        built.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if panel.warn is not None or panel.alarm is not None:
        built.thresholds(_thresholds(panel)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    return built


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .unit(panel.unit)
        .thresholds(_thresholds(panel))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .unit(panel.unit)
        .min(0)
        .thresholds(_thresholds(panel))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
        )
        .cell_gap(1)
        .show_legend()
    )


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    """Green, then orange from `warn` and red from `alarm` on; the other way round where less is worse."""
    own = [(panel.warn, "orange"), (panel.alarm, "red")]
    marks = [(bound, colour) for bound, colour in own if bound is not None]
    bounds, colours = [bound for bound, _ in marks], ["green", *(colour for _, colour in marks)]
    if bounds != sorted(bounds):
        bounds.reverse()
        colours.reverse()
    steps = [
        models.Threshold(value=bound, color=colour)
        for bound, colour in zip([None, *bounds], colours, strict=True)
    ]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)

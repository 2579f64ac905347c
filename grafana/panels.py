"""What a dashboard says, as plain values; `grafana/build.py` makes Grafana's own types of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from grafana.promql import buckets, quantile

Kind = Literal["lines", "stack", "stat", "bars", "heatmap"]
QUANTILES = (0.5, 0.95, 0.99)
GREEN, YELLOW, ORANGE, RED, GREY = "#56a64b", "#f2cc0c", "#ff780a", "#e02f44", "#9fa7b3"
#: How something ended has one colour on all dashboards.
OUTCOME_COLOURS: Mapping[str, str] = {
    **dict.fromkeys(("ok", "hit", "found"), GREEN),
    **dict.fromkeys(("partial", "miss"), YELLOW),
    **dict.fromkeys(("rejected", "timeout", "degraded"), ORANGE),
    **dict.fromkeys(("error", "failed", "missed"), RED),
    **dict.fromkeys(("cancelled", "off", "gone"), GREY),
}


@dataclass(frozen=True)
class Query:
    """One expression; `legend` names its series with `{{label}}`. `exemplars` asks for the traces behind them."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel: `shows` says what it is, `bad` which value is a bad one and what it means, `do` what helps.

    `unit` is Grafana's name of one (`s`, `reqps`, `percentunit`, `bytes`, …). Where `warn` and `alarm` are set,
    values from there on are orange and red; upwards, or downwards where `alarm` is the smaller. `width` is of 24.
    `colours` are those of series by name; the others get the next of Grafana's palette. The axis of a graph begins
    at 0, unless values may lie `below_zero`.
    """

    kind: Kind
    title: str
    queries: Sequence[Query]
    shows: str
    bad: str
    do: str
    unit: str = "short"
    width: int = 8
    height: int = 8
    warn: float | None = None
    alarm: float | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    below_zero: bool = False

    @property
    def description(self) -> str:
        return f"{self.shows}\n\n**Bad:** {self.bad}\n\n**Do:** {self.do}"


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the dashboard's top: the values of a label of a metric."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `uid` is its address and its file's name. Each has the variables datasource and instance."""

    uid: str
    title: str
    about: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()


def coloured(*outcomes: str) -> Mapping[str, str]:
    """The colours of these outcomes. Raises KeyError for one that has none."""
    return {outcome: OUTCOME_COLOURS[outcome] for outcome in outcomes}


def quantiles(
    histogram: str, where: str = "", *, by: str = "", exemplars: bool = False
) -> list[Query]:
    """p50, p95 and p99 of a histogram; exemplars come with the highest."""
    label = f"{{{{{by}}}}} " if by else ""
    return [
        Query(
            quantile(q, histogram, by, where),
            f"{label}p{q * 100:.0f}",
            exemplars and q == QUANTILES[-1],
        )
        for q in QUANTILES
    ]


def distribution(histogram: str, where: str = "") -> list[Query]:
    return [Query(buckets(histogram, where), "{{le}}", exemplars=False)]

"""The few shapes of PromQL that the dashboards are made of. Pure; metric names are written in full."""

from __future__ import annotations

#: Every expression looks at the instances that the dashboard's variable names.
SCOPE = 'instance=~"$instance"'
#: What other programs have too: every process its own, every vLLM.
OURS = 'job=~".*groundwire.*"'
#: What Grafana fills in: some scrapes long, and never shorter than a step of the graph.
WINDOW = "$__rate_interval"


def series(metric: str, where: str = "") -> str:
    """The metric's series in scope; `where` are further matchers."""
    return f"{metric}{{{', '.join(part for part in (SCOPE, where) if part)}}}"


def total(metric: str, by: str = "", where: str = "") -> str:
    """A gauge, summed."""
    return f"{_sum(by)}({series(metric, where)})"


def rate(counter: str, by: str = "", where: str = "") -> str:
    """A counter's increase a second, summed."""
    return f"{_sum(by)}(rate({series(counter, where)}[{WINDOW}]))"


def mean(histogram: str, by: str = "", where: str = "") -> str:
    """The mean of what was observed."""
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    """A quantile of what was observed, as exact as the buckets are fine."""
    inner = rate(f"{histogram}_bucket", f"{by}, le" if by else "le", where)
    return f"histogram_quantile({q}, {inner})"


def buckets(histogram: str, where: str = "") -> str:
    """How many observations fell into each bucket: a heatmap."""
    inner = series(f"{histogram}_bucket", where)
    return f"sum by (le) (increase({inner}[{WINDOW}]))"


def share(counter: str, part: str, whole: str = "", by: str = "") -> str:
    """The part of a counter that the matchers `part` choose, of what `whole` chooses; 0 where nothing matches.

    A series that has never counted is not there at all, so the whole lends its own, times zero.
    """
    of = rate(counter, by, whole)
    return f"({rate(counter, by, part)} or {of} * 0) / {of}"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"

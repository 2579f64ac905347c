"""Dashboards drawn without Grafana: their own JSON, their queries asked of a Prometheus, a page that draws them.

`python -m grafana.preview URL FOLDER` writes one HTML file a dashboard, of the last hour. It is not Grafana, and says
so: for a look where there is none, and for the tests that show what an operator sees.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PAGE = Path(__file__).with_name("preview.html")
#: Points of a graph.
POINTS = 200


@dataclass(frozen=True)
class Span:
    """From when to when is drawn (Unix seconds), and how many seconds a rate looks back."""

    start: float
    end: float
    window_seconds: int

    @property
    def step(self) -> int:
        return max(1, math.ceil((self.end - self.start) / POINTS))


class Prometheus:
    """The API of one Prometheus, until it is closed. Raises httpx.HTTPError, and ValueError for a query it refuses."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/api/v1", timeout=60, trust_env=False
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self._client.post(path, data=parameters) if parameters else self._client.get(path)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']}: {parameters.get('query', path)}")
        return body["data"]

    def instant(self, expr: str, at: float) -> list[dict[str, Any]]:
        """The series of the expression at a time, as Prometheus writes them; a scalar as one without labels."""
        data = self.get("/query", query=expr, time=at)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def range(self, expr: str, span: Span) -> list[dict[str, Any]]:
        """The same over a span, with `values`."""
        data = self.get("/query_range", query=expr, start=span.start, end=span.end, step=span.step)
        return list(data["result"])

    def exemplars(self, expr: str, span: Span) -> list[dict[str, Any]]:
        """The exemplars of the expression's series: labels, value, timestamp."""
        data = self.get("/query_exemplars", query=expr, start=span.start, end=span.end)
        return [exemplar for series in data for exemplar in series["exemplars"]]


def filled_in(expr: str, span: Span) -> str:
    """The expression with the dashboard's variables as `All`."""
    expr = expr.replace("$__rate_interval", f"{span.window_seconds}s")
    for variable in ("instance", "model", "store"):
        expr = expr.replace(f"${variable}", ".*")
    return expr


def answers(board: dict[str, Any], prometheus: Prometheus, span: Span) -> dict[str, list[Any]]:
    """What each panel's queries give, by the panel's id; in each `series`, and `exemplars` where they are wanted."""
    found: dict[str, list[Any]] = {}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            expr = filled_in(target["expr"], span)
            series = (
                [{**one, "values": [one["value"]]} for one in prometheus.instant(expr, span.end)]
                if target.get("instant")
                else prometheus.range(expr, span)
            )
            exemplars = prometheus.exemplars(expr, span) if target.get("exemplar") else []
            found.setdefault(str(panel["id"]), []).append(
                {"legend": target["legendFormat"], "series": series, "exemplars": exemplars}
            )
    return found


def page(board: dict[str, Any], found: dict[str, list[Any]], span: Span) -> str:
    """The HTML page that draws the dashboard."""
    data = {"board": board, "answers": found, "start": span.start, "end": span.end}
    # A page ends a script at `</`, wherever it stands.
    return PAGE.read_text().replace("/*DATA*/null", json.dumps(data).replace("</", "<\\/"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.preview")
    parser.add_argument("url", help="of a Prometheus")
    parser.add_argument("folder", type=Path, help="where the pages go")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (60)")
    args = parser.parse_args()
    now = time.time()
    span = Span(now - 60 * args.minutes, now, 60)
    args.folder.mkdir(parents=True, exist_ok=True)
    with closing(Prometheus(args.url)) as prometheus:
        for path in sorted(PAGE.with_name("dashboards").glob("*.json")):
            board = json.loads(path.read_text())
            (args.folder / f"{path.stem}.html").write_text(
                page(board, answers(board, prometheus, span), span)
            )


if __name__ == "__main__":
    main()

"""`python -m grafana`: write the dashboards' JSON into `grafana/dashboards/`."""

from __future__ import annotations

from pathlib import Path

from grafana import engine, index, overview, retrieval_quality, stages
from grafana.build import to_json
from grafana.panels import Dashboard

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS: tuple[Dashboard, ...] = (
    overview.DASHBOARD,
    stages.DASHBOARD,
    retrieval_quality.DASHBOARD,
    engine.DASHBOARD,
    index.DASHBOARD,
)


def main() -> None:
    for board in DASHBOARDS:
        (FOLDER / f"{board.uid}.json").write_text(to_json(board))


if __name__ == "__main__":
    main()

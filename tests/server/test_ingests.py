"""ingests: totals over runs, and the file that they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.telemetry.buckets import INGEST_STEP
from server.telemetry.ingests import FILE, IngestTotals, read_totals, write_totals


def test_runs_add_up() -> None:
    one = IngestTotals().plus("ok", {"added": 3}, {"embed": [0.2, 0.3]}, now=10.0)
    two = one.plus("cancelled", {"added": 1, "failed": 2}, {"embed": [500.0], "load": [0.0]}, 20.0)
    assert two.runs == {"ok": 1, "cancelled": 1}
    assert two.files == {"added": 4, "failed": 2}
    assert two.last_success == 10.0
    embed = two.steps["embed"]
    assert embed.sum_seconds == pytest.approx(500.5)
    assert embed.counts[INGEST_STEP.index(0.25)] == 1
    assert embed.counts[INGEST_STEP.index(0.5)] == 1
    assert embed.counts[-1] == 1, "beyond all bounds"
    assert two.plus("partial", {}, {}, 30.0).last_success == 30.0


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    assert read_totals(tmp_path) == IngestTotals()
    totals = IngestTotals().plus("ok", {"added": 3}, {"embed": [0.2]}, now=10.0)
    write_totals(tmp_path, totals)
    assert read_totals(tmp_path) == totals
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"runs": 1', '{"runs":{},"steps":[]}'])
def test_a_damaged_file_is_none(tmp_path: Path, damaged: str) -> None:
    (tmp_path / FILE).write_text(damaged)
    assert read_totals(tmp_path) == IngestTotals()


def test_steps_of_other_buckets_begin_anew(tmp_path: Path) -> None:
    write_totals(tmp_path, IngestTotals().plus("ok", {}, {"embed": [0.2], "load": [0.1]}, 1.0))
    kept = json.loads((tmp_path / FILE).read_text())
    kept["steps"]["load"].update(bounds=[1.0], counts=[1, 0])
    (tmp_path / FILE).write_text(json.dumps(kept))
    totals = read_totals(tmp_path)
    assert list(totals.steps) == ["embed"]
    assert totals.runs == {"ok": 1}

"""Four times more requests than the server can take, from another process, against a server process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.api.bench import ingest_by_command, write_documents
from tests.server.api.test_process import serving

#: What bounds the waiting: (queue / places + 1) services.
RUNNING, QUEUED, TOKENS, TOKEN_SECONDS, PREFILL_SECONDS = 8, 8, 40, 0.02, 0.2
SERVICE_SECONDS = PREFILL_SECONDS + TOKENS * TOKEN_SECONDS
CAPACITY = RUNNING / SERVICE_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_times_capacity(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = float(pytestconfig.getoption("--soak-seconds"))
    ingest_by_command(tmp_path / "data", write_documents(tmp_path / "docs"), "docs")
    script = {
        "answer": "word " * TOKENS, "token_seconds": TOKEN_SECONDS, "prefill_seconds": PREFILL_SECONDS,
    }  # fmt: skip
    limits = {"max_running": str(RUNNING), "max_queued": str(QUEUED)}
    with serving(tmp_path / "data", script, default_store="docs", **limits) as process:
        done = subprocess.run(
            [sys.executable, "-m", "bench.overload", process.ready(), "--rate", str(4 * CAPACITY),
             "--seconds", str(seconds), "--pid", str(process.popen.pid)],
            cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
            timeout=seconds + 600,
        )  # fmt: skip
    result = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    wait = (QUEUED / RUNNING + 1) * SERVICE_SECONDS
    assert result["broken"] == result["refused_without_retry_after"] == 0
    assert result["accepted"] >= 0.8 * CAPACITY * seconds
    assert result["refused"] > 0
    assert result["accepted_ttft_p99_seconds"] <= 1.5 * result["quiet_ttft_seconds"] + wait
    assert result["refused_p99_seconds"] < 0.05
    assert result["resident_growth"] < 1.1
    assert result["recovery_seconds"] is not None
    assert result["recovery_seconds"] < 5
    assert set(result["gauges"].values()) == {0.0}

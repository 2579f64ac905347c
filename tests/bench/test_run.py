"""The instrument, end to end: a real server over a scripted engine, and a JSON that says what was printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from bench.report import FILE, ROOT, tables
from tests.server.api.bench import eventually


def test_a_small_run_measures_prints_and_saves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--engine", "scripted", "--only", "search"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / FILE).read_text())
    assert tables(saved) in done.stdout
    entry = saved["scenarios"]["search"]
    assert entry["trial"]
    assert entry["conditions"]["cores"] >= 1
    alone, crowd, *stages = entry["figures"]
    assert len(alone["rounds"]["Groundwire"]) == 2
    assert min(*alone["rounds"]["Groundwire"], *crowd["rounds"]["Groundwire"]) > 0
    assert {figure["name"] for figure in stages} >= {
        "alone, of that embed",
        "alone, of that search",
    }
    assert {alone["verdict"], crowd["verdict"]} <= {"met", "not met", "undecided"}


def serves(process: psutil.Process) -> bool:
    try:
        return "serve" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--engine", "scripted", "--only", "search"]
    bench = psutil.Popen([*command, "--out", str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: any(map(serves, bench.children())), 60)
        started = bench.children(recursive=True)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) != 0
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive, alive
    finally:
        if bench.poll() is None:
            bench.kill()
            bench.wait(10)

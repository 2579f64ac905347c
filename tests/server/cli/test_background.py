"""Stepping back, in a process of its own: it cannot be undone without rights."""

from __future__ import annotations

import subprocess
import sys

REPORT = """
import os
from server.cli.background import step_back
step_back()
step_back()
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_BATCH)
"""


def test_it_is_nicer_and_batch_work_however_often() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["10", "True"]

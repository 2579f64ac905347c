"""Work that gives way: an ingest beside a server must not take the processor from its streams."""

from __future__ import annotations

import os

#: A tenth of a busy processor against a process of normal niceness (Linux weighs 10 as 110 and 0 as 1,024).
#: Less would let an ingest that holds the catalog's lock keep a busy server waiting for it.
NICENESS = 10


def step_back() -> None:
    """Let other processes go first: nicer than they are, and scheduled as batch work where that exists.

    Threads and children that are started later follow.
    """
    if (now := os.getpriority(os.PRIO_PROCESS, 0)) < NICENESS:
        os.nice(NICENESS - now)
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

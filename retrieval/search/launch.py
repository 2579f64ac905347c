"""The child's own first lines: run as a script, it ties its life to its parent's and becomes Chroma.

A script and not a `preexec_fn`, which is unsafe in a parent with threads. It imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

#: linux/prctl.h
PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux; else nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call above took effect.
    if os.getppid() != parent_pid:
        sys.exit("the process that started Chroma is gone")


def close_all_but(kept: int) -> None:
    """Close what was inherited beside standard streams and `kept`: uvloop closes nothing in its children."""
    os.closerange(3, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def main(parent_pid: str, path: str, port: str, lease: str) -> None:
    die_with(int(parent_pid))
    close_all_but(int(lease))
    os.environ["RUST_LOG"] = "warn"  # Chroma logs 3 kB per request otherwise
    # What chromadb.cli.cli calls, without the second that importing chromadb takes.
    from chromadb_rust_bindings import cli  # type: ignore[import-untyped]

    cli(["chroma", "run", "--path", path, "--host", "127.0.0.1", "--port", port])


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Publishes again and again in children, each killed one file-system call later than the one before.

Arguments: a data directory and a published directory, which may be followed by `stepped-back`. Prints one JSON line
a child: at which call it was killed (null: it came to its end), and what was current and whole then. Or, each time
after a step back from v-2 to v-1, which number the next writer gave.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from server.published import CURRENT, check, current, folder, publish, writer_lock

#: What Python tells audit hooks before it changes or opens a file.
CALLS = ("open", "os.", "shutil.")


def die_at(call: int) -> None:
    """End this process as by `kill -9` at its `call`-th file-system call."""
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event.startswith(CALLS) and event not in ("os.kill",):
            seen += 1
            if seen == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def publish_in_a_child(data_dir: Path, published: Path, call: int) -> bool:
    """Whether it came to its end before its `call`-th file-system call."""
    pid = os.fork()
    if pid == 0:
        die_at(call)
        with writer_lock(published):
            publish(data_dir, published)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def after_a_step_back(data_dir: Path, published: Path) -> None:
    call, ended = 0, False
    while not ended:
        call += 1
        shutil.rmtree(published)
        published.mkdir()
        for _ in range(2):
            publish(data_dir, published)
        (published / CURRENT).write_text("v-1\n")
        ended = publish_in_a_child(data_dir, published, call)
        print(json.dumps([None if ended else call, publish(data_dir, published)]), flush=True)


def main(data_dir: Path, published: Path) -> None:
    call, ended = 0, False
    while not ended:
        call += 1
        (data_dir / "catalog.db").write_text(str(call))
        ended = publish_in_a_child(data_dir, published, call)
        version = current(published)
        if version is not None:
            check(folder(published, version))
        found = version and (folder(published, version) / "catalog.db").read_text()
        print(json.dumps([None if ended else call, version, found]), flush=True)


if __name__ == "__main__":
    run = after_a_step_back if sys.argv[3:] == ["stepped-back"] else main
    run(Path(sys.argv[1]), Path(sys.argv[2]))

"""Publishes again and again in children, each killed one file-system call later than the one before.

Arguments: a data directory and a published directory. Prints one JSON line a child: at which call it was killed
(null: it came to its end), and what was current and whole then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from server.published import check, current, folder, publish, writer_lock

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


def main(data_dir: Path, published: Path) -> None:
    call, ended = 0, False
    while not ended:
        call += 1
        (data_dir / "catalog.db").write_text(str(call))
        pid = os.fork()
        if pid == 0:
            die_at(call)
            with writer_lock(published):
                publish(data_dir, published)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status) == 0
        version = current(published)
        if version is not None:
            check(folder(published, version))
        found = version and (folder(published, version) / "catalog.db").read_text()
        print(json.dumps([None if ended else call, version, found]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

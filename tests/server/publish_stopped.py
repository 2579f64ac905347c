"""Runs `groundwire ingest`, and presses Ctrl-C each time that it opens a file of a name below a folder.

Arguments: that folder, the names of the files with commas between, and the command's own arguments.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from server.cli import main


def stop_at(folder: Path, names: list[str]) -> None:
    """Get a SIGINT at the first opening of each of `names`, wherever below `folder`."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | os.PathLike):
            return
        path = Path(arguments[0])
        if path.name in names and path.is_relative_to(folder):
            names.remove(path.name)
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)


if __name__ == "__main__":
    stop_at(Path(sys.argv[1]), sys.argv[2].split(","))
    sys.exit(main(sys.argv[3:]))

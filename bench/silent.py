"""Groundwire's command line with nothing counted, to measure what counting costs: `python -m bench.silent serve …`.

Its metrics are replaced by ones that do nothing; the engine's own are its own.
"""

from __future__ import annotations

import sys
from typing import Any


class Silent:
    """A metric of any kind that forgets at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def labels(self, *_: str) -> Silent:
        return self

    def observe(self, *_: Any) -> None: ...

    inc = dec = set = observe


def main() -> int:
    from server import weave
    from server.cli import main as run
    from server.telemetry import collectors

    for name in ("Counter", "Gauge", "Histogram", "SplitHistogram"):
        setattr(collectors, name, Silent)
    # Nobody need know which event holds a token.
    weave.has_token = lambda raw: False  # noqa: ARG005
    return run()


if __name__ == "__main__":
    sys.exit(main())

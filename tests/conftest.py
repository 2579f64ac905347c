"""Fixtures shared by the whole suite."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = [
    "tests.engine.real",
    "tests.server.api.bench",
    "tests.debian.servers",
    "tests.debian.observed",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="write tests/golden anew from what is served",
    )
    parser.addoption(
        "--pictures",
        action="store_true",
        help="keep the pictures that the Prometheus suite draws in docs/dashboards",
    )
    parser.addoption(
        "--soak-seconds",
        default="20",
        help="how long the overload test asks for more than the server can take",
    )


class OneEngine(LoadFileScheduling):
    """With `-n`, a file runs in one process, and all that share the one real engine in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        path: str = super()._split_scope(nodeid)
        return "engine" if path.startswith(("tests/engine/", "tests/client/")) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneEngine:
    return OneEngine(config, log)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

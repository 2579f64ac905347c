"""Fixtures shared by the whole suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

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


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

"""Fixtures shared by the whole suite."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.engine.real"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="write tests/golden anew from what is served",
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

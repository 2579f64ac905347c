"""The shared server; and one app over it with the settings that most tests want."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.api.bench import Bench, Running, open_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("bench")) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared(bench: Bench) -> Iterator[Running]:
    """For tests that neither change it nor count anything of it."""
    with bench.serve() as running:
        yield running


@pytest.fixture
def served(bench: Bench) -> Iterator[Running]:
    """The same, with an engine and metrics of the test's own."""
    with bench.serve() as running:
        yield running

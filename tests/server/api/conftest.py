"""One app over the shared server, with the settings that most tests want."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.api.bench import Bench, Running


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

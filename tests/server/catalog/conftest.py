from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.catalog import Catalog, sqlite_url
from tests.debian.servers import Postgres


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "catalog.db")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        made: str = request.getfixturevalue("sqlite")
        return made
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    async with await Catalog.open(url) as opened:
        yield opened

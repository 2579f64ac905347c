from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.catalog import Catalog, sqlite_url


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "catalog.db")


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    async with await Catalog.open(url) as opened:
        yield opened

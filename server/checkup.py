"""Stores that this server cannot search as they are: found at the start and looked for while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from retrieval.errors import IndexMissing
from retrieval.ingest.index import INDEX_FORMAT
from retrieval.lexical import LexicalIndex
from server.catalog import Catalog, CatalogError, Store

log = logging.getLogger(__name__)

#: How often the stores are looked at; a reindex in another process ends a warning.
LOOK_SECONDS = 60.0


#: What is wrong with an adopted store, and what helps; None: nothing.
CheckAdopted = Callable[[Store], Awaitable[str | None]]


class Checkup:
    """Compares each store with the embedder and the formats of this server.

    `warnings` is for `/ready`, which anyone may read: it counts, and names no store. The log names them.
    """

    def __init__(
        self, catalog: Catalog, lexical: LexicalIndex, embedder: str, adopted: CheckAdopted
    ) -> None:
        self._catalog = catalog
        self._lexical = lexical
        self._embedder = embedder
        self._adopted = adopted
        self._told: set[str] = set()
        self.warnings: tuple[str, ...] = ()

    async def watch(self, every_seconds: float = LOOK_SECONDS) -> None:
        """Look again and again, until it is cancelled; what fails is logged."""
        while True:
            try:
                await self.look()
            except Exception as error:  # whatever it is, the next look may succeed
                unexpected = not isinstance(error, CatalogError)
                log.warning("the stores could not be looked at: %s", error, exc_info=unexpected)
            await asyncio.sleep(every_seconds)

    async def look(self) -> None:
        """Look at every store once; what is new goes to the log. Raises CatalogError."""
        outdated = await self._catalog.stores_of_other_format(INDEX_FORMAT)
        found = []
        for store in await self._catalog.every_store():
            complaint = await self._complaint(store, outdated)
            if complaint is not None:
                found.append(
                    f"the store {store.name!r} ({store.id}, tenant {store.tenant}) {complaint}"
                )
        for line in found:
            if line not in self._told:
                log.warning("%s", line)
        self._told = set(found)
        remedies = "`groundwire reindex` or `groundwire adopt`"
        warning = f"{len(found)} stores need {remedies}; the log names them"
        self.warnings = (warning,) if found else ()

    async def _complaint(self, store: Store, outdated: set[str]) -> str | None:
        """What is wrong with the store, and what helps."""
        if store.adopted is not None:
            if await self._damaged(store):
                return "has a keyword index that cannot be used: run `groundwire adopt` again"
            return await self._adopted(store)
        wrong = await self._wrong(store, outdated)
        return None if wrong is None else f"{wrong}: run `groundwire reindex {store.id}`"

    async def _wrong(self, store: Store, outdated: set[str]) -> str | None:
        if store.embedder is not None and store.embedder != self._embedder:
            return f"was built with the embedder {store.embedder!r}, and {self._embedder!r} is set"
        if store.id in outdated:
            return "was cut by another version of groundwire"
        if await self._damaged(store):
            return "has a keyword index that cannot be used"
        return None

    async def _damaged(self, store: Store) -> bool:
        try:
            await asyncio.to_thread(self._lexical.count, store.index_name)
        except IndexMissing:
            return True
        return False

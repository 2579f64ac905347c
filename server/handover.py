"""From one version of the index to the next while requests run: who is answered from which, and until when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

from server.knowledge import Knowledge

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Term:
    """One knowledge while it is in use; `closing` closes it."""

    knowledge: Knowledge
    closing: AsyncExitStack
    requests: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def over(self) -> None:
        """Return when no request is left. Only for a term that begins no more requests."""
        while self.requests > 0:  # `close` forgets requests that end all the same
            self.changed.clear()
            await self.changed.wait()


class Handover:
    """The knowledge that is current; one that was replaced is closed behind its last request.

    Used from one event loop.
    """

    def __init__(self, first: Knowledge, closing: AsyncExitStack) -> None:
        self._term = _Term(first, closing)
        self._leaving: dict[asyncio.Task[None], _Term] = {}

    @property
    def current(self) -> Knowledge:
        return self._term.knowledge

    @property
    def leaving(self) -> int:
        """How many that were replaced are not closed yet."""
        return len(self._leaving)

    @contextmanager
    def lease(self) -> Iterator[Knowledge]:
        """The current knowledge, which stays open until the block is left."""
        term = self._term
        term.requests += 1
        try:
            yield term.knowledge
        finally:
            term.requests -= 1
            term.changed.set()

    def to(self, knowledge: Knowledge, closing: AsyncExitStack) -> None:
        """Give every request that begins from now on this knowledge."""
        old, self._term = self._term, _Term(knowledge, closing)
        leaving = asyncio.ensure_future(self._see_out(old))
        self._leaving[leaving] = old
        leaving.add_done_callback(self._leaving.pop)

    async def close(self) -> None:
        """Close all, whether or not requests are left."""
        for term in self._leaving.values():
            term.requests = 0
            term.changed.set()
        await asyncio.gather(*self._leaving)
        await self._term.closing.aclose()

    async def _see_out(self, term: _Term) -> None:
        await term.over()
        try:
            await term.closing.aclose()
        except Exception:  # nobody waits for this; the version is out of use in any case
            log.exception("version %d of the index did not close well", term.knowledge.version)

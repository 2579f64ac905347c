"""The URLs that answers carry."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import Request

from retrieval.types import Passage
from server.auth import Caller
from server.knowledge import Knowledge
from server.services import Services


def link_for(
    request: Request, services: Services, knowledge: Knowledge, caller: Caller
) -> Callable[[Passage], str]:
    """What makes a passage's absolute URL: below `public_url`, else below what this request was sent to."""
    base = services.settings.public_url or str(request.base_url).rstrip("/")
    links, tenant, now = knowledge.links, caller.tenant, time.time()

    def link(passage: Passage) -> str:
        return links.url(base, tenant, passage, now)

    return link

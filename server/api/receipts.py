"""`GET /v1/rag/receipts/{id}`: why an answer saw what it saw."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.account import Account
from server.api.links import link_for
from server.auth import Caller
from server.deps import CallerDep, KnowledgeDep, ServicesDep
from server.errors import NotFound
from server.knowledge import Knowledge
from server.receipt_body import receipt_body
from server.services import Services

router = APIRouter()


# A path, because a client's own request id may have slashes in it.
@router.get("/v1/rag/receipts/{receipt_id:path}")
async def retrieve_receipt(
    receipt_id: str,
    request: Request,
    services: ServicesDep,
    knowledge: KnowledgeDep,
    caller: CallerDep,
) -> JSONResponse:
    """The receipt of one of the caller's latest requests, by the completion's id or by the `x-request-id`."""
    account = services.receipts.find(caller.tenant, receipt_id)
    if account is None:
        raise NotFound(
            "no such receipt: this server keeps those of its latest requests (receipts_kept)"
        )
    return JSONResponse(body_of(account, request, services, knowledge, caller))


def body_of(
    account: Account, request: Request, services: Services, knowledge: Knowledge, caller: Caller
) -> dict[str, Any]:
    """A receipt as this caller sees it."""
    link = link_for(request, services, knowledge, caller)
    return receipt_body(account, link, min_similarity=services.settings.min_similarity)

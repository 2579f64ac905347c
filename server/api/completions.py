"""`POST /v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.generation import Generation, generate
from server.deps import CallerDep, KnowledgeDep, RequestIdDep, ServicesDep
from server.openapi import takes
from server.wire.completions import CompletionRequest

TEXT = Generation("/v1/completions", CompletionRequest, "cmpl")

router = APIRouter()


@router.post(TEXT.route, openapi_extra=takes(CompletionRequest))
async def create_completion(
    request: Request,
    services: ServicesDep,
    knowledge: KnowledgeDep,
    caller: CallerDep,
    request_id: RequestIdDep,
) -> Response:
    """A text completion, grounded where its model's name or its `rag` says so."""
    return await generate(TEXT, request, services, knowledge, caller, request_id)

"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.generation import Generation, generate
from server.deps import CallerDep, KnowledgeDep, RequestIdDep, ServicesDep
from server.openapi import takes
from server.wire.chat import ChatRequest

CHAT = Generation("/v1/chat/completions", ChatRequest, "chatcmpl")

router = APIRouter()


@router.post(CHAT.route, openapi_extra=takes(ChatRequest))
async def create_chat_completion(
    request: Request,
    services: ServicesDep,
    knowledge: KnowledgeDep,
    caller: CallerDep,
    request_id: RequestIdDep,
) -> Response:
    """A chat completion, grounded in the store that the request chooses."""
    return await generate(CHAT, request, services, knowledge, caller, request_id)

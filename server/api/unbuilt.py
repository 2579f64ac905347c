"""OpenAI's routes that Groundwire will have and has not yet: a clear 400, never a silent nothing."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.deps import CallerDep, ServicesDep, refuse_writes
from server.errors import BadRequest

PREFIXES = ("/v1/responses", "/v1/files", "/v1/vector_stores")
#: What is no knowledge: a write there is no write to the index.
ANSWERS = "/v1/responses"
METHODS = ["GET", "POST", "DELETE"]

router = APIRouter()


async def not_yet(request: Request, services: ServicesDep, _: CallerDep) -> None:
    """Raises BadRequest naming the route; ReadOnlyIndex where it would write to a published index."""
    if not request.url.path.startswith(ANSWERS):
        refuse_writes(request, services)
    raise BadRequest(f"{request.method} {request.url.path} is not supported yet")


for _prefix in PREFIXES:
    for _path in (_prefix, _prefix + "/{rest:path}"):
        router.add_api_route(_path, not_yet, methods=METHODS, include_in_schema=False)

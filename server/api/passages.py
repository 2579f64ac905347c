"""`GET /v1/rag/passages/{file}/{hash}/{chunk}`: where a citation leads."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.deps import ServicesDep, caller_of
from server.errors import NotFound

router = APIRouter()


@router.get("/v1/rag/passages/{file_id}/{content_hash}/{chunk}")
async def retrieve_passage(
    file_id: str, content_hash: str, chunk: str, request: Request, services: ServicesDep
) -> JSONResponse:
    """The passage's text and where it stands in its file; 404 when the file, or this version of it, is gone."""
    parts = (file_id, content_hash, chunk)
    tenant = services.links.tenant(request.query_params, parts, time.time())
    if tenant is None:
        tenant = (await caller_of(request)).tenant
    # Nine digits: more cannot be a chunk, and would not fit the database's integer.
    number = int(chunk) if chunk.isascii() and chunk.isdigit() and len(chunk) <= 9 else None
    passage = None
    if number is not None:
        passage = await services.catalog.passage(file_id, content_hash, number, tenant)
    if passage is None:
        raise NotFound("no such passage: its file was deleted or has changed since")
    body: dict[str, Any] = {
        "object": "rag.passage",
        "file_id": passage.file_id,
        "filename": passage.filename,
        "content_hash": passage.content_hash,
        "chunk": passage.chunk,
        "title": passage.title,
        "headings": list(passage.headings),
        "page": passage.page,
        "text": passage.text,
    }
    # Documents are not ours to vouch for: nothing in them may run or load where they are shown.
    headers = {"content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}
    return JSONResponse(body, headers=headers)

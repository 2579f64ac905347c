"""`GET /v1/rag/passages/{file}/{hash}/{chunk}`: where a citation leads."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from retrieval.errors import IndexMissing
from retrieval.types import HASH_DIGITS, Passage, passage_id
from server.deps import KnowledgeDep, caller_of
from server.errors import NotFound
from server.knowledge import Knowledge

router = APIRouter()


@router.get("/v1/rag/passages/{file_id}/{content_hash}/{chunk}")
async def retrieve_passage(
    file_id: str, content_hash: str, chunk: str, request: Request, knowledge: KnowledgeDep
) -> JSONResponse:
    """The passage's text and where it stands in its file; 404 when the file, or this version of it, is gone."""
    parts = (file_id, content_hash, chunk)
    tenant = knowledge.links.tenant(request.query_params, parts, time.time())
    if tenant is None:
        tenant = (await caller_of(request)).tenant
    # Nine digits: more cannot be a chunk, and would not fit the database's integer.
    number = int(chunk) if chunk.isascii() and chunk.isdigit() and len(chunk) <= 9 else None
    passage = None
    if number is not None:
        passage = await knowledge.catalog.passage(file_id, content_hash, number, tenant)
        passage = passage or await _adopted(knowledge, tenant, file_id, content_hash, number)
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


async def _adopted(
    knowledge: Knowledge, tenant: str, file_id: str, content_hash: str, chunk: int
) -> Passage | None:
    """The passage in one of the tenant's adopted stores: the catalog has none of theirs."""
    if len(content_hash) < HASH_DIGITS:
        return None
    wanted = passage_id(file_id, content_hash, chunk)
    for store in await knowledge.catalog.list_stores(tenant):
        if store.adopted is None:
            continue
        with suppress(IndexMissing):
            found = await asyncio.to_thread(knowledge.lexical.passages, store.index_name, [wanted])
            passage = found.get(wanted)
            if passage is not None and passage.content_hash.startswith(content_hash):
                return passage
    return None

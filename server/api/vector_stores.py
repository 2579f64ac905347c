"""`POST /v1/vector_stores/{id}/search`: retrieval alone, without an answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from retrieval.deadline import deadline
from retrieval.errors import IndexMissing
from retrieval.trace import Trace
from retrieval.types import Query, WeightedText
from server import receipts
from server.auth import Caller
from server.deps import CallerDep, KnowledgeDep, ServicesDep, admitted, read_json, recorded
from server.errors import BadRequest, IndexUnusable
from server.grounding import LOOK_UP_LATE
from server.knowledge import Knowledge
from server.openapi import takes
from server.queries import MAX_QUERY_CHARACTERS, fusion_weights
from server.services import Services
from server.sse import unless_gone
from server.wire.common import RankingOptions
from server.wire.search import SearchRequest

log = logging.getLogger(__name__)

ROUTE = "/v1/vector_stores/{vector_store_id}/search"

router = APIRouter()


@router.post(ROUTE, openapi_extra=takes(SearchRequest))
async def search_vector_store(
    vector_store_id: str,
    request: Request,
    services: ServicesDep,
    knowledge: KnowledgeDep,
    caller: CallerDep,
) -> Response:
    """The passages of one store that fit a query best, as OpenAI's `vector_store.search_results.page`."""
    recording = recorded(request, services, ROUTE)
    until = services.deadline()
    with recording.closed_by_failure():
        async with admitted(request, services, caller, ROUTE, until):
            recording.admitted()
            recording.asked, asked = await read_json(request, SearchRequest)
            page = await unless_gone(
                request.receive,
                _search(services, knowledge, caller, vector_store_id, asked, recording.trace),
                until,
            )
    timings = receipts.server_timing(recording.trace.timings_ms())
    recording.close("ok")
    return Response(orjson.dumps(page), media_type="application/json", headers=timings)


async def _search(
    services: Services,
    knowledge: Knowledge,
    caller: Caller,
    store_ref: str,
    asked: SearchRequest,
    trace: Trace,
) -> dict[str, Any]:
    """Raises BadRequest for what is not built, StoreNotFound, AmbiguousStore, EmbedderConflict, IndexUnusable,
    RetrievalError."""
    _refuse_unbuilt(asked)
    until = asyncio.get_running_loop().time() + services.settings.retrieval_timeout_seconds
    async with deadline(until, LOOK_UP_LATE):
        store = await knowledge.catalog.find_store(caller.tenant, store_ref)
    await knowledge.indexes.ready(store, until)
    first, *others = (text[:MAX_QUERY_CHARACTERS] for text in asked.query)
    also = tuple(WeightedText(text) for text in others)
    ranking = asked.ranking_options or RankingOptions()
    query = Query(first, (store.index_name,), asked.max_num_results, also, fusion_weights(ranking))
    try:
        retrieval = await knowledge.retriever.retrieve(
            query, trace, scope=((store.tenant, store.version),), until=until
        )
    except IndexMissing as error:
        log.error("%s cannot be searched: %s", store.id, error)
        remedy = "reindex" if store.adopted is None else "adopt"
        raise IndexUnusable(
            f"the keyword index of the vector store {store_ref!r} cannot be used: whoever runs the server makes it "
            f"anew with `groundwire {remedy}`"
        ) from error
    services.metrics.observe_search(retrieval.best_similarity, retrieval.candidates)
    threshold = ranking.score_threshold or 0.0
    good = [one for one in retrieval.candidates if one.shown_score >= threshold]
    return receipts.search_page(asked.query, good[: asked.max_num_results], include_text=True)


def _refuse_unbuilt(asked: SearchRequest) -> None:
    if asked.filters is not None:
        raise BadRequest("filters is not supported yet: files have no attributes", param="filters")
    if asked.rewrite_query:
        raise BadRequest(
            "rewrite_query is not supported: this server has no query rewriter; leave it out or "
            "send false",
            param="rewrite_query",
        )

"""`/health`, `/ready` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.catalog import LOCAL_TENANT
from server.deps import CallerDep, KnowledgeDep, ServicesDep
from server.engine.base import Engine
from server.openapi import document
from server.telemetry.exposition import exposition

#: A part that has not answered by then is not ready.
PROBE_SECONDS = 2.0

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(services: ServicesDep, knowledge: KnowledgeDep) -> JSONResponse:
    """Whether an engine, vector store and catalog answer: 200, or 503 with what is wrong."""
    parts = {
        "engine": await _probe(_alive(services.engine)),
        "vectors": await _probe(knowledge.vectors.heartbeat()),
        "catalog": await _probe(knowledge.catalog.list_stores(LOCAL_TENANT)),
        "accepting": "the server is shutting down" if services.admission.draining else "ok",
    }
    fine = all(state == "ok" for state in parts.values())
    body: dict[str, Any] = {"status": "ready" if fine else "not ready", **parts}
    if len(services.engines) > 1:
        body["engines"] = {
            name: await _probe(_alive(engine)) for name, engine in services.engines.items()
        }
    warnings = [*knowledge.checkup.warnings]
    if services.settings.published_dir is not None:
        body["index_version"] = knowledge.version
        if not knowledge.version:
            warnings.append("no index is published yet: run `groundwire ingest --publish`")
    if warnings:
        body["warnings"] = warnings
    return JSONResponse(body, 200 if fine else 503)


async def _alive(engine: Engine) -> None:
    engine.check_health()


async def _probe(answer: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await answer
    except TimeoutError:
        return f"no answer within {PROBE_SECONDS} s"
    except Exception as error:  # whatever is wrong with a part, the probe's job is to say so
        return str(error) or type(error).__name__
    return "ok"


@router.get("/openapi.json")
async def openapi(request: Request, _: CallerDep) -> JSONResponse:
    """The OpenAPI document of this server."""
    return JSONResponse(document(request.app))


@router.get("/metrics")
async def metrics(request: Request, services: ServicesDep, _: CallerDep) -> Response:
    """Prometheus metrics: `groundwire_*`, and the engine's own (`vllm:*`) on the same page."""
    accept = request.headers.get("accept", "")
    # Some milliseconds that the streams should not wait for.
    body, content_type = await asyncio.to_thread(exposition, services.metrics.registry, accept)
    return Response(body, headers={"content-type": content_type})

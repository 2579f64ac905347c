"""The ASGI app: routes, middleware, error handlers, and the services behind them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from retrieval.errors import RetrievalError
from server.api import (
    chat,
    completions,
    embeddings,
    engine_routes,
    models,
    operations,
    passages,
    receipts,
    unbuilt,
    vector_stores,
)
from server.catalog import CatalogError
from server.engine.base import EngineError
from server.errors import (
    INTERNAL,
    BadRequest,
    MethodNotAllowed,
    NotFound,
    ServerError,
    answer,
    mapped,
)
from server.middleware import BodyLimit, Doorkeeper, Leased, RequestId
from server.services import Services, open_services
from server.settings import Settings

log = logging.getLogger(__name__)

#: What proxies log for a client that left before the answer; nobody receives it.
CLIENT_CLOSED_REQUEST = 499


def create_app(
    settings: Settings,
    services: Services | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> FastAPI:
    """The app. Without `services` it opens its own when it starts, and closes them when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if services is not None:
            app.state.services = services
            yield
            return
        async with open_services(settings, progress) as opened:
            app.state.services = opened
            yield

    app = FastAPI(
        title="Groundwire",
        lifespan=lifespan,
        middleware=_middleware(settings),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    for module in (
        chat,
        completions,
        embeddings,
        vector_stores,
        models,
        passages,
        receipts,
        operations,
        engine_routes,
        unbuilt,
    ):
        app.include_router(module.router)
    for error in (ServerError, EngineError, RetrievalError, CatalogError, Exception):
        app.add_exception_handler(error, _answer)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(HTTPException, _answer_framework)
    app.add_exception_handler(RequestValidationError, _answer_framework)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """Outermost first."""
    stack = [Middleware(RequestId)]
    if not settings.api_keys:
        stack.append(
            Middleware(
                Doorkeeper,
                allowed_hosts=settings.allowed_hosts,
                allowed_origins=settings.allowed_origins,
            )
        )
    if settings.allowed_origins:
        # Behind the doorkeeper: it would answer the preflights of foreign pages in a form of its own.
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=[
                    "x-request-id",
                    "x-rag-status",
                    "x-rag-sources",
                    "x-rag-cached",
                    "x-rag-model",
                    "server-timing",
                ],
            )
        )
    return [*stack, Middleware(BodyLimit, max_bytes=settings.max_body_bytes), Middleware(Leased)]


async def _answer(request: Request, error: Exception) -> JSONResponse:
    request_id = request.state.request_id
    row = mapped(error)
    if row is INTERNAL:
        log.error("%s: internal error", request_id, exc_info=error)
    elif row.told is not None:
        log.error("%s: %s", request_id, error)
    told = answer(error, request_id)
    # An internal error is answered outside of the middleware that adds the id to every other answer.
    headers = {**told.headers, "x-request-id": request_id}
    return JSONResponse(told.body, told.status, headers=headers)


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_framework(request: Request, error: Exception) -> JSONResponse:
    """Starlette's and FastAPI's own errors as ours."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        return await _answer(request, NotFound(f"no route {request.method} {request.url.path}"))
    if isinstance(error, HTTPException) and error.status_code == 405:
        told = await _answer(
            request, MethodNotAllowed(f"{request.url.path} does not take {request.method}")
        )
        told.headers.update(error.headers or {})  # `Allow`
        return told
    return await _answer(request, BadRequest(str(error)))

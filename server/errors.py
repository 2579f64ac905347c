"""Every error that reaches a client: the typed ones of the server, and the one table that maps all to HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from retrieval import errors as retrieval_errors
from server.catalog import errors as catalog_errors
from server.engine import base as engine_errors
from server.wire.common import first_complaint


class ServerError(Exception):
    """The root of the server's own errors. `param` names the field that was wrong."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequest(ServerError):
    """The request is wrong; the same request cannot succeed."""

    @classmethod
    def of(cls, error: ValidationError, prefix: str = "") -> BadRequest:
        """The first complaint of pydantic's, in words, with its field."""
        message, field = first_complaint(error)
        if prefix:
            field = f"{prefix}.{field}" if field else prefix
            message = f"{prefix}.{message}"
        return cls(message, param=field)


class AmbiguousName(BadRequest):
    """Several stores of the caller have the name that the request chose."""


class NoSuchStore(ServerError):
    """The caller has no store of the id or name that the request chose."""


class ModelNotFound(ServerError):
    """No model of this name."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class NotFound(ServerError):
    """No such thing, or not the caller's."""


class Unauthorized(ServerError):
    """No key, or not a valid one."""


class Forbidden(ServerError):
    """The caller may not do this (foreign origin or host)."""


class BodyTooLarge(ServerError):
    """The body is larger than `max_body_bytes`."""


class MethodNotAllowed(ServerError):
    """The path exists, the method does not."""


class Overloaded(ServerError):
    """The server works on as many requests as it may, and as many wait as may."""

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Overloaded):
    """The caller has as many requests here as it may."""


class RequestTimeout(ServerError):
    """The request ran past `request_timeout_seconds`."""


class Draining(ServerError):
    """The server is shutting down and takes no new requests."""


class ReadOnlyIndex(ServerError):
    """The server answers from published versions of the index and cannot write to them."""


class IndexUnusable(ServerError):
    """The store that the request names cannot be searched before its index is made anew."""


class RetrievalFailed(ServerError):
    """Retrieval failed and the request asked for `on_error: fail`."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How an exception class looks over HTTP.

    `retry_after_seconds`: a repeat may help after that long. `told` is what a client reads in place of the exception's
    own words, which name paths, addresses and what libraries said: those are for the log.
    """

    status: int
    type: str
    code: str | None
    retry_after_seconds: int | None = None
    told: str | None = None


#: Exception -> HTTP. Looked up along the class's bases, so a subclass without a row takes its parent's.
TABLE: Mapping[type[Exception], Mapped] = {
    BadRequest: Mapped(400, "invalid_request_error", None),
    AmbiguousName: Mapped(400, "invalid_request_error", "ambiguous_store"),
    NoSuchStore: Mapped(404, "invalid_request_error", "store_not_found"),
    ModelNotFound: Mapped(404, "invalid_request_error", "model_not_found"),
    NotFound: Mapped(404, "invalid_request_error", "not_found"),
    Unauthorized: Mapped(401, "authentication_error", "invalid_api_key"),
    Forbidden: Mapped(403, "permission_error", "forbidden"),
    BodyTooLarge: Mapped(413, "invalid_request_error", "body_too_large"),
    MethodNotAllowed: Mapped(405, "invalid_request_error", "method_not_allowed"),
    Overloaded: Mapped(503, "server_error", "overloaded", 1),
    RateLimited: Mapped(429, "rate_limit_error", "rate_limited", 1),
    RequestTimeout: Mapped(504, "server_error", "request_timeout"),
    Draining: Mapped(503, "server_error", "shutting_down", 5),
    ReadOnlyIndex: Mapped(409, "invalid_request_error", "read_only_index"),
    RetrievalFailed: Mapped(503, "server_error", "retrieval_failed", 1),
    IndexUnusable: Mapped(503, "server_error", "index_missing"),
    ServerError: Mapped(500, "server_error", "internal_error", told="internal error"),
    engine_errors.EngineRejected: Mapped(400, "invalid_request_error", None),
    engine_errors.EngineUnsupported: Mapped(404, "invalid_request_error", "unsupported"),
    engine_errors.EngineOverloaded: Mapped(503, "server_error", "overloaded", 1),
    engine_errors.EngineUnreachable: Mapped(503, "server_error", "engine_unreachable", 5),
    engine_errors.EngineTimeout: Mapped(504, "server_error", "engine_timeout"),
    engine_errors.EngineDead: Mapped(503, "server_error", "engine_dead", 30),
    engine_errors.EngineError: Mapped(
        500, "server_error", "engine_error", told="the engine failed"
    ),
    catalog_errors.StoreNotFound: Mapped(404, "invalid_request_error", "store_not_found"),
    catalog_errors.FileNotFound: Mapped(404, "invalid_request_error", "file_not_found"),
    catalog_errors.AmbiguousStore: Mapped(400, "invalid_request_error", "ambiguous_store"),
    catalog_errors.EmbedderConflict: Mapped(409, "invalid_request_error", "embedder_conflict"),
    catalog_errors.CatalogUnavailable: Mapped(503, "server_error", "catalog_unavailable", 1),
    catalog_errors.CatalogError: Mapped(
        500, "server_error", "catalog_error", told="the catalog failed"
    ),
    retrieval_errors.StoreUnavailable: Mapped(503, "server_error", "store_unavailable", 1),
    retrieval_errors.DeadlineExceeded: Mapped(503, "server_error", "retrieval_timeout", 1),
    retrieval_errors.DataDirectoryInUse: Mapped(503, "server_error", "data_directory_in_use", 5),
    retrieval_errors.UnreadableFile: Mapped(400, "invalid_request_error", "unsupported_file"),
    retrieval_errors.TextTooLong: Mapped(400, "invalid_request_error", "context_length_exceeded"),
    retrieval_errors.DimensionMismatch: Mapped(409, "invalid_request_error", "dimension_mismatch"),
    retrieval_errors.IndexMissing: Mapped(
        503,
        "server_error",
        "index_missing",
        told="there is no index of the store that this server can use",
    ),
    retrieval_errors.EmbedderAbsent: Mapped(500, "server_error", "embedder_unavailable"),
    retrieval_errors.EmbedderError: Mapped(
        500, "server_error", "embedder_unavailable", told="the embedder failed"
    ),
    retrieval_errors.RetrievalError: Mapped(
        500, "server_error", "retrieval_error", told="retrieval failed"
    ),
}

INTERNAL = Mapped(500, "server_error", "internal_error", told="internal error")


def mapped(error: Exception) -> Mapped:
    """The row for an exception; what is in no row is an internal error."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return INTERNAL


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """Status, headers and OpenAI's envelope, ready to be sent."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def answer(error: Exception, request_id: str) -> ErrorAnswer:
    """An exception as clients see it; internals stay in the log, found there by the request id."""
    row = mapped(error)
    status, code = row.status, row.code
    if isinstance(error, engine_errors.EngineRejected):
        status, code = error.status, error.code
    if isinstance(error, engine_errors.EngineOverloaded) and error.status == 429:
        status, code = 429, "rate_limit_exceeded"
    message = str(error) or "internal error"
    if row.told is not None:
        message = f"{row.told}; the server's log has it under request id {request_id}"
    headers: dict[str, str] = {}
    retry_after = getattr(error, "retry_after_seconds", row.retry_after_seconds)
    retry_after = getattr(error, "retry_after", None) or retry_after  # an upstream's own
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    elif status >= 500 or status == 409:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    error_type = "rate_limit_error" if status == 429 else row.type
    error_type = error_type if status < 500 or row.type == "server_error" else "server_error"
    return ErrorAnswer(
        status,
        headers,
        envelope(message, error_type, param=getattr(error, "param", None), code=code),
    )


def envelope(
    message: str, error_type: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}

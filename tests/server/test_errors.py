"""errors: one table maps every exception to HTTP, and each class has a row or its parent's on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import server.bundled
import server.ingestion
from retrieval import errors as retrieval_errors
from server import errors
from server.catalog import errors as catalog_errors
from server.engine import base as engine_errors

assert server.bundled
assert server.ingestion  # their subclasses are walked too

ROOTS = (
    errors.ServerError,
    engine_errors.EngineError,
    retrieval_errors.RetrievalError,
    catalog_errors.CatalogError,
)
#: What can never be raised while a request is served, so that its parent's 500 is right for it.
PARENTS_ROW = {
    "RerankerError",
    "InvalidStoreName",
    "BundledModelError",
    "IndexerError",
    "IngestError",
    "IngestBusy",
}
EXPECTED = {
    "BadRequest": (400, None, None),
    "AmbiguousName": (400, "ambiguous_store", None),
    "NoSuchStore": (404, "store_not_found", None),
    "ModelNotFound": (404, "model_not_found", None),
    "NotFound": (404, "not_found", None),
    "Unauthorized": (401, "invalid_api_key", None),
    "Forbidden": (403, "forbidden", None),
    "BodyTooLarge": (413, "body_too_large", None),
    "MethodNotAllowed": (405, "method_not_allowed", None),
    "Overloaded": (503, "overloaded", "1"),
    "RateLimited": (429, "rate_limited", "1"),
    "RequestTimeout": (504, "request_timeout", None),
    "Draining": (503, "shutting_down", "5"),
    "ReadOnlyIndex": (409, "read_only_index", None),
    "RetrievalFailed": (503, "retrieval_failed", "1"),
    "IndexUnusable": (503, "index_missing", None),
    "ServerError": (500, "internal_error", None),
    "EngineRejected": (400, None, None),
    "EngineUnsupported": (404, "unsupported", None),
    "EngineOverloaded": (503, "overloaded", "1"),
    "EngineUnreachable": (503, "engine_unreachable", "5"),
    "EngineTimeout": (504, "engine_timeout", None),
    "EngineDead": (503, "engine_dead", "30"),
    "EngineError": (500, "engine_error", None),
    "StoreNotFound": (404, "store_not_found", None),
    "FileNotFound": (404, "file_not_found", None),
    "AmbiguousStore": (400, "ambiguous_store", None),
    "EmbedderConflict": (409, "embedder_conflict", None),
    "CatalogUnavailable": (503, "catalog_unavailable", "1"),
    "CatalogError": (500, "catalog_error", None),
    "DimensionMismatch": (409, "dimension_mismatch", None),
    "IndexMissing": (503, "index_missing", None),
    "EmbedderAbsent": (500, "embedder_unavailable", None),
    "EmbedderError": (500, "embedder_unavailable", None),
    "StoreUnavailable": (503, "store_unavailable", "1"),
    "DeadlineExceeded": (503, "retrieval_timeout", "1"),
    "DataDirectoryInUse": (503, "data_directory_in_use", "5"),
    "UnreadableFile": (400, "unsupported_file", None),
    "TextTooLong": (400, "context_length_exceeded", None),
    "RetrievalError": (500, "retrieval_error", None),
}


def walk(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for child in cls.__subclasses__():
        yield from walk(child)


CLASSES = sorted({cls for root in ROOTS for cls in walk(root)}, key=lambda cls: cls.__name__)


def instance(cls: type[Exception]) -> Exception:
    arguments = {
        "StoreNotFound": ("docs",),
        "FileNotFound": ("file-1",),
        "AmbiguousStore": ("docs", ["vs_1", "vs_2"]),
        "InvalidStoreName": ("docs", "no"),
        "EmbedderConflict": ("docs", "a", "b"),
        "UnreadableFile": ("a.pdf", "is empty"),
    }
    return cls(*arguments.get(cls.__name__, ("what was wrong",)))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_mapped(cls: type[Exception]) -> None:
    assert cls in errors.TABLE or cls.__name__ in PARENTS_ROW, (
        "no row, and not listed as inheriting"
    )
    told = errors.answer(instance(cls), "req_1")
    row = next(EXPECTED[base.__name__] for base in cls.__mro__ if base.__name__ in EXPECTED)
    error = told.body["error"]
    assert (told.status, error["code"], told.headers.get("retry-after")) == row
    assert set(told.body) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert told.status != 422
    # Both of OpenAI's SDKs repeat a 409 by themselves; WIRE has it say that this is of no use.
    retries = (told.status < 500 and told.status != 409) or "retry-after" in told.headers
    assert told.headers.get("x-should-retry") == (None if retries else "false")
    assert (error["type"] == "server_error") == (told.status >= 500)
    assert ("www-authenticate" in told.headers) == (told.status == 401)


def test_every_row_is_reached() -> None:
    assert {cls.__name__ for cls in errors.TABLE} == set(EXPECTED)


def test_what_nobody_foresaw_stays_inside() -> None:
    told = errors.answer(RuntimeError("secret: /etc/passwd"), "req_1")
    assert told.status == 500
    assert "secret" not in told.body["error"]["message"]
    assert "req_1" in told.body["error"]["message"]
    assert told.headers["x-should-retry"] == "false"


#: Its words are for the client.
TOLD_AS_IT_IS = {"EmbedderAbsent"}


@pytest.mark.parametrize(
    "cls",
    [
        cls
        for cls, row in errors.TABLE.items()
        if (row.status == 500 or cls is retrieval_errors.IndexMissing)
        and cls.__name__ not in TOLD_AS_IT_IS
    ],
    ids=lambda cls: cls.__name__,
)
def test_what_an_exception_says_of_the_inside_stays_inside(cls: type[Exception]) -> None:
    told = errors.answer(cls("secret: /etc/passwd"), "req_1")
    assert "secret" not in told.body["error"]["message"]
    assert "req_1" in told.body["error"]["message"]


@pytest.mark.parametrize(
    ("status", "error_type", "retry"),
    [(400, "invalid_request_error", None), (404, "invalid_request_error", None),
     (500, "server_error", "false"), (409, "invalid_request_error", "false")],
)  # fmt: skip
def test_the_engines_own_status_is_kept(status: int, error_type: str, retry: str | None) -> None:
    error = engine_errors.EngineRejected(
        "too long", status=status, param="messages", code="context_length_exceeded"
    )
    told = errors.answer(error, "req_1")
    assert told.status == status
    assert told.headers.get("x-should-retry") == retry
    assert told.body["error"] == {
        "message": "too long",
        "type": error_type,
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_an_upstreams_limit_is_passed_on() -> None:
    error = engine_errors.EngineOverloaded("slow down", status=429, retry_after="17")
    told = errors.answer(error, "req_1")
    assert (told.status, told.headers["retry-after"]) == (429, "17")
    assert told.body["error"]["type"] == "rate_limit_error"
    assert told.body["error"]["code"] == "rate_limit_exceeded"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int = Field(ge=1)


class Outer(BaseModel):
    inner: Inner | None = None
    items: list[str | list[int]] = []


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"inner": {"number": 0}}, "p.inner.number", "greater than or equal to 1"),
        ({"inner": {"number": 1, "x": 1}}, "p.inner.x", "no such field"),
        ({"items": ["a", 5]}, "p.items.1", "valid string"),
    ],
)
def test_the_first_wrong_field_is_named(body: object, param: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(body)
    error = errors.BadRequest.of(caught.value, prefix="p")
    assert error.param == param
    assert str(error).startswith(f"{param}: ")
    assert message in str(error)

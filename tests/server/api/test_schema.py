"""The OpenAPI document is whole, and whatever schemathesis makes of it gets an answer that is no 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from server.api.engine_routes import GENERATING
from server.api.unbuilt import PREFIXES
from server.app import create_app
from server.openapi import document
from server.settings import Settings
from tests.server.api.bench import Running

APP = create_app(Settings())
DOCUMENT = document(APP)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
#: An answer that takes longer hangs.
SECONDS = 30


def built() -> Iterator[tuple[str, str]]:
    for route in APP.routes:
        assert isinstance(route, APIRoute)
        unbuilt = any(route.path in (prefix, prefix + "/{rest:path}") for prefix in PREFIXES)
        if not unbuilt and route.path not in GENERATING:
            for method in route.methods:
                yield route.path_format.replace(":path", ""), method.lower()


def test_every_route_is_in_the_document() -> None:
    assert set(OPERATIONS) == set(built())


def test_every_body_is_described() -> None:
    for path, method in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        if method == "post":
            assert operation["requestBody"]["content"]["application/json"]["schema"], path
        assert "422" not in operation["responses"]


def test_every_reference_leads_somewhere() -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(DOCUMENT))
    assert "#/components/schemas/RagOptions" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


def test_it_is_served(shared: Running) -> None:
    assert shared.client.get("/openapi.json").json() == DOCUMENT


def check(running: Running, path: str, method: str, data: st.DataObject) -> None:
    """What fits the document and what does not: an answer, or an error in OpenAI's envelope."""
    operation = SCHEMA[path][method]
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    strategy = fitting
    if operation.body:
        strategy = fitting | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    case = data.draw(strategy)
    # Names made up end at the first check: what is behind it wants one that exists.
    if isinstance(case.body, dict) and data.draw(st.sampled_from([True, True, False])):
        case.body.pop("model", None)
    if "vector_store_id" in (case.path_parameters or {}):
        case.path_parameters["vector_store_id"] = "docs"
    response = case.call(base_url=running.url, timeout=SECONDS)
    # The scripted engine says itself that it cannot do this.
    assert response.status_code < 500 or path == "/detokenize", response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"], response.text


# The server is shared by the examples on purpose: what one leaves behind, the next must not feel.
QUIET = list(HealthCheck)
EACH = pytest.mark.parametrize(("path", "method"), OPERATIONS)


@EACH
@settings(max_examples=100, suppress_health_check=QUIET, derandomize=True)
@given(data=st.data())
def test_some_requests(shared: Running, path: str, method: str, data: st.DataObject) -> None:
    check(shared, path, method, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@EACH
@settings(max_examples=500, suppress_health_check=QUIET)
@given(data=st.data())
def test_many_requests(shared: Running, path: str, method: str, data: st.DataObject) -> None:
    check(shared, path, method, data)

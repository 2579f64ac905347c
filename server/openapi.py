"""The OpenAPI document: routes as FastAPI knows them, bodies from the wire models, errors as they really are."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_SCHEMAS = "#/components/schemas/"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """What a route that reads its JSON body itself says of it, as FastAPI's `openapi_extra`."""
    schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. Routes that are not built and the engine's own generating ones are not in it."""
    found = get_openapi(
        title=app.title, version=importlib.metadata.version("groundwire"), routes=app.routes
    )
    # FastAPI's own error bodies, which no route of ours sends.
    schemas: dict[str, Any] = {"Error": _ERROR}
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            told = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}}
            operation["responses"]["default"] = {"description": "An error", "content": told}
            schemas |= _hoisted(operation)
    found["components"] = {"schemas": schemas}
    return found


def _hoisted(operation: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a body brought along: OpenAPI looks for them in one place."""
    media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = media.get("schema", {})
    definitions: dict[str, Any] = schema.get("$defs", {})
    if definitions:
        media["schema"] = {key: value for key, value in schema.items() if key != "$defs"}
    return definitions

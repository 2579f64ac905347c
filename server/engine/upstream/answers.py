"""What an upstream answers, read and made ours: bad statuses, model lists, whole answers, chunks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from server.engine.base import (
    EngineError,
    EngineOverloaded,
    EngineRejected,
    EngineUnreachable,
    ModelCard,
    failure,
)

#: How servers say in words that the prompt is too long (OpenAI and vLLM, vLLM, llama.cpp).
TOO_LONG = ("maximum context length", "maximum model length", "context size")
#: A chunk's first fields in OpenAI's order; what reads the bytes behind us counts on it.
HEAD = ("id", "object", "created", "model")
#: What a gateway says for a server behind it that does not answer.
GATEWAY = (502, 504)


def refusal(status: int, raw: bytes, retry_after: str | None, where: str) -> EngineError:
    """A bad status as one of our errors; what only concerns us and the upstream stays with us."""
    try:
        message, param, code = error_of(orjson.loads(raw))
    except orjson.JSONDecodeError:
        message, param, code = f"{where} answered {status}", None, None
    if status in (429, 503):
        return EngineOverloaded(message, status=status, retry_after=retry_after)
    if status in (401, 403):
        return EngineError(f"{where} does not accept the key that the server has for it")
    if status in GATEWAY:
        return EngineUnreachable(f"{where} cannot be reached: its gateway answered {status}")
    if status >= 500 and status != 501:
        return failure(where, message)
    if status < 400:
        return EngineError(f"{where} answered {status}; its url must be the final one")
    too_long = code == "context_length_exceeded" or any(words in message for words in TOO_LONG)
    return EngineRejected(
        message,
        status=400 if status == 422 else status,
        param=param,
        code="context_length_exceeded" if too_long else code if isinstance(code, str) else None,
    )


def error_of(body: Any) -> tuple[str, str | None, Any]:
    """(message, param, code) of an error body in OpenAI's, vLLM's or FastAPI's form."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), None, None
    message = error.get("message") or error.get("detail") or "it gave no reason"
    param = error.get("param")
    return str(message), param if isinstance(param, str) else None, error.get("code")


def error_event(message: str, param: str | None = None, code: Any = None) -> bytes:
    error = {"message": message, "type": "server_error", "param": param, "code": code}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def listed(body: Any, where: str) -> list[ModelCard]:
    """Its list of models. Raises EngineError for what is no list."""
    try:
        return [
            ModelCard(
                str(card["id"]),
                int(card.get("created") or 0),
                str(card.get("owned_by") or "upstream"),
                int(card["max_model_len"]) if card.get("max_model_len") else None,
            )
            for card in body["data"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{where} lists its models not in OpenAI's form") from error


def chat_models(cards: Sequence[ModelCard]) -> list[ModelCard]:
    """Of all models those that say their length, if any does: embedders and aliases say none."""
    return [card for card in cards if card.max_model_len] or list(cards)


def completion(answer: Any, request_id: str, where: str, *, chat: bool) -> bytes:
    """A whole completion under our id. Raises EngineError for what is none."""
    try:
        for choice in answer["choices"]:
            _refuse_no_text(choice["message"].get("content") if chat else choice["text"])
        if not answer["choices"]:
            raise KeyError("choices")
        return orjson.dumps({**answer, "id": request_id})
    except (AttributeError, KeyError, TypeError) as error:
        raise EngineError(f"{where} answered without choices") from error


def ended(chunk: Mapping[str, Any], choices: int, *, chat: bool) -> set[int]:
    """The choices that end in this chunk. Raises AttributeError, KeyError or TypeError for what is no chunk."""
    for choice in chunk["choices"]:
        if not 0 <= choice["index"] < choices:
            raise KeyError("index")
        _refuse_no_text(choice["delta"].get("content") if chat else choice["text"])
    return {c["index"] for c in chunk["choices"] if c.get("finish_reason") is not None}


def _refuse_no_text(text: Any) -> None:
    if not isinstance(text, str | None):
        raise TypeError("text")


def is_noise(chunk: Mapping[str, Any], *, wants_usage: bool) -> bool:
    """An empty chunk without usage that was asked for: some clients take it for the end."""
    return not chunk["choices"] and not (wants_usage and chunk.get("usage"))


def chunk_event(data: bytes, chunk: Mapping[str, Any], request_id: str) -> bytes:
    """The event of a chunk under our id; in OpenAI's order of fields, every other byte as it came."""
    theirs = b'{"id":' + orjson.dumps(chunk.get("id")) + b',"object":'
    if (*HEAD, "choices") == tuple(chunk)[:5] and data.startswith(theirs):
        rest = b',"object":' + data[len(theirs) :]
        return b'data: {"id":' + orjson.dumps(request_id) + rest + b"\n\n"
    head = {name: chunk[name] for name in (*HEAD, "choices") if name in chunk}
    ordered = {"id": "", **head, **chunk} | {"id": request_id}
    return b"data: " + orjson.dumps(ordered) + b"\n\n"

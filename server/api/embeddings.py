"""`POST /v1/embeddings`: the retrieval embedder, for whoever fills or asks an index of their own."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from retrieval.embed import Embedded
from server.deps import CallerDep, ServicesDep, admitted, read_json, recorded
from server.errors import BadRequest, ModelNotFound
from server.openapi import takes
from server.plan import Models
from server.services import Services
from server.sse import unless_gone
from server.token_ids import ENCODING, Vocabulary, foreign_encoding
from server.wire.embeddings import EmbeddingsRequest

ROUTE = "/v1/embeddings"
#: OpenAI's limit for one request, in cl100k_base's tokens; LangChain fills requests up to it.
OPENAI_MAX_TOKENS = 300_000
#: The same in the embedder's tokens, which may be more: of real text up to 1.7 times as many (`docs/decisions/0010`).
MAX_TOKENS = 3 * OPENAI_MAX_TOKENS

router = APIRouter()


@router.post(ROUTE, openapi_extra=takes(EmbeddingsRequest))
async def create_embeddings(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """One unit vector for each text, embedded as a passage; longer than the model reads: pooled windows."""
    recording = recorded(request, services, ROUTE)
    until = services.deadline()
    with recording.closed_by_failure():
        async with admitted(request, services, caller, ROUTE, until):
            recording.admitted()
            recording.asked, asked = await read_json(request, EmbeddingsRequest)
            answer = await unless_gone(request.receive, _embed(services, asked), until)
    recording.close("ok")
    return Response(answer, media_type="application/json")


async def _embed(services: Services, asked: EmbeddingsRequest) -> bytes:
    """The answer's bytes. Raises ModelNotFound, BadRequest, TextTooLong, EmbedderError."""
    name = _model(asked, services.models)
    if asked.dimensions not in (None, services.texts.dimension):
        raise BadRequest(
            f"this model gives {services.texts.dimension} dimensions and was not trained for fewer; "
            "leave `dimensions` out",
            param="dimensions",
        )
    # Millions of ids, or of numbers to write, take a moment that the streams should not wait for.
    texts = await asyncio.to_thread(_texts, asked, name, services.vocabulary)
    embedded = await services.texts.embed(texts, max_tokens=MAX_TOKENS)
    return await asyncio.to_thread(_encoded, embedded, asked.encoding_format, name)


def _model(asked: EmbeddingsRequest, models: Models) -> str:
    """The name that the answer carries: the client's own, or the embedder's where it gave none."""
    name = asked.model or models.embedder
    resolved = models.resolve(name)
    if resolved is None:
        raise ModelNotFound(f"The model {name!r} does not exist. Known: {models.embedder}.")
    if resolved != models.embedder:
        raise BadRequest(
            f"{name!r} is a chat model; {models.embedder!r} makes embeddings", param="model"
        )
    return name


def _texts(asked: EmbeddingsRequest, model: str, vocabulary: Vocabulary) -> list[str]:
    """The inputs as texts. Raises BadRequest for ids that are not cl100k_base's."""
    has_ids = isinstance(asked.input[0], list)
    if has_ids and (encoding := foreign_encoding(model)) is not None:
        raise BadRequest(
            f"token ids for {model!r} are of {encoding}, and this server reads {ENCODING}: send text, or "
            "ask for text-embedding-3-small",
            param="input",
        )
    return [
        one if isinstance(one, str) else vocabulary.decode(one, f"input.{index}")
        for index, one in enumerate(asked.input)
    ]


def _encoded(embedded: Embedded, encoding_format: str, model: str) -> bytes:
    vectors: Any = embedded.vectors
    if encoding_format == "base64":
        vectors = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    body = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

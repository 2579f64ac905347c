"""`POST /v1/embeddings`: the body, as OpenAI's SDK and LangChain send it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from server.wire.common import Closed

#: OpenAI's own limit.
MAX_INPUTS = 2048
TokenIds = Annotated[list[int], Field(min_length=1)]
#: What clients may send.
Inputs = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
)


def _listed(given: object) -> object:
    """A list of texts or of lists of ids, whichever of the four forms came."""
    # Not a union: pydantic would complain about each of its branches, and the first is the wrong one.
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise ValueError("must be a text, a list of texts, or token ids")
    if _all_of(int, given):
        return [given]
    if len(given) > MAX_INPUTS:
        raise ValueError(f"at most {MAX_INPUTS} inputs in one request")
    if _all_of(str, given) or all(_all_of(int, ids) for ids in given):
        return given
    raise ValueError("must be a text, a list of texts, or token ids: lists of integers, none empty")


def _all_of(kind: type, values: object) -> bool:
    # `type`, because a boolean is an int to `isinstance`.
    return (
        isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)
    )


class EmbeddingsRequest(Closed):
    """Texts, or cl100k_base token ids that stand for texts. `null` in an optional field means absent."""

    input: Annotated[list[str | list[int]], BeforeValidator(_listed, json_schema_input_type=Inputs)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None

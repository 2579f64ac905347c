"""`POST /v1/vector_stores/{id}/search`: the body, as OpenAI's SDK sends it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from server.wire.common import Closed, RankingOptions

#: Each query is embedded and looked up on its own; more of them than this is no search but a job.
MAX_QUERIES = 16
QueryText = Annotated[str, Field(min_length=1)]
#: What clients may send.
Texts = QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=MAX_QUERIES)]


def _listed(query: object) -> object:
    # Not a union: pydantic would complain about each of its branches, and the first is the wrong one.
    if query == "":
        raise ValueError("must not be empty")
    return [query] if isinstance(query, str) else query


class SearchRequest(Closed):
    """What to look for in one store. `null` in an optional field means absent."""

    query: Annotated[
        list[QueryText],
        Field(min_length=1, max_length=MAX_QUERIES),
        BeforeValidator(_listed, json_schema_input_type=Texts),
    ]
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None

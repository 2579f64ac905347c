"""`POST /v1/vector_stores/{id}/search`: the body, as OpenAI's SDK sends it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from server.wire.common import Closed

#: Each query is embedded and looked up on its own; more of them than this is no search but a job.
MAX_QUERIES = 16
QueryText = Annotated[str, Field(min_length=1)]


def _listed(query: object) -> object:
    # Not a union: pydantic would complain about each of its branches, and the first is the wrong one.
    return [query] if isinstance(query, str) else query


class SearchRankingOptions(Closed):
    """`ranker` is accepted for OpenAI's clients and has one meaning here."""

    ranker: str | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)
    hybrid_search: dict[str, Any] | None = None


class SearchRequest(Closed):
    """What to look for in one store. `null` in an optional field means absent."""

    query: Annotated[
        list[QueryText],
        Field(min_length=1, max_length=MAX_QUERIES),
        BeforeValidator(_listed),
    ]
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: SearchRankingOptions | None = None
    rewrite_query: bool | None = None

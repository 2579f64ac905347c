"""`POST /v1/chat/completions`: the fields that Groundwire reads. The engine validates the rest."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from server.wire.common import Closed, RankingOptions, Wire


class RagOptions(Closed):
    """The body field `rag` (WIRE section 2)."""

    enabled: bool | None = None
    vector_store_ids: list[str] | None = Field(None, max_length=16)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None
    max_context_tokens: int | None = Field(None, ge=0)
    include_text: bool | None = None
    dry_run: bool | None = None
    on_error: Literal["skip", "fail"] | None = None
    on_empty: Literal["answer", "refuse"] | None = None
    footer: bool | None = None
    sticky: bool | None = None
    route: Literal["small", "large"] | None = None


class FileSearchTool(Closed):
    """The tool `{"type": "file_search", …}`."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=16)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None


class Message(Wire):
    """One message; role and content are all that grounding looks at."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Wire):
    """A chat request. `null` in an optional field means absent."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    rag: RagOptions | None = None

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of an answer; the newer of the two fields wins."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

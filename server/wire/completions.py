"""`POST /v1/completions`: the fields that Groundwire reads. The engine validates the rest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from server.wire.chat import RagOptions
from server.wire.common import Wire

TokenIds = list[Annotated[int, Field(ge=0)]]


class CompletionRequest(Wire):
    """A text completion. `null` in an optional field means absent."""

    model: str | None = None
    prompt: str | list[str] | TokenIds | list[TokenIds] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    n: int | None = None
    echo: bool | None = None
    rag: RagOptions | None = None

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of an answer."""
        return self.max_tokens

    @property
    def asks_for_sources(self) -> bool:
        """Whether `rag` says more than which model is to answer, or whether one is."""
        if self.rag is None:
            return False
        said = self.rag.model_fields_set
        return not said or not said <= {"route", "dry_run"}

    @property
    def prompts(self) -> int:
        """How many prompts there are; a list of token ids is one."""
        if isinstance(self.prompt, list) and not all(isinstance(id_, int) for id_ in self.prompt):
            return len(self.prompt)
        return 1

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The prompts as texts; None where they are token ids, or something else than a prompt is sent."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        texts = tuple(text for text in self.prompt or () if isinstance(text, str))
        return texts if texts and len(texts) == len(self.prompt or ()) else None

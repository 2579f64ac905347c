"""Pydantic bases and the pieces that several routes share."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Wire(BaseModel):
    """A body we read: unknown fields are kept for the engine, which knows more of them than we do."""

    model_config = ConfigDict(extra="allow", strict=True)


class Closed(BaseModel):
    """An object that is ours alone: an unknown field in it is a mistake of the client's."""

    model_config = ConfigDict(extra="forbid", strict=True)


class HybridSearch(Closed):
    """How much each of the two rankings counts beside the other: 0 leaves one out."""

    embedding_weight: float = Field(ge=0)
    text_weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _one_counts(self) -> Self:
        if not self.embedding_weight and not self.text_weight:
            raise ValueError("embedding_weight and text_weight cannot both be 0")
        return self


class RankingOptions(Closed):
    """As in OpenAI's file search; `ranker` is accepted for its clients and has one meaning here."""

    ranker: str | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)
    hybrid_search: HybridSearch | None = None


def first_complaint(error: ValidationError) -> tuple[str, str | None]:
    """Pydantic's first complaint in words, with its field in front, and the field's path (None: the whole)."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if _is_field(part))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "no such field"
    return (f"{field}: {message}" if field else message), field or None


def _is_field(part: int | str) -> bool:
    """Pydantic names the branch of a union it tried in the location, such as `list[dict[str,any]]`."""
    return isinstance(part, int) or (part.replace("_", "").isalnum() and part not in ("str", "int"))

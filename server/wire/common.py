"""Pydantic bases and the pieces that several routes share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Wire(BaseModel):
    """A body we read: unknown fields are kept for the engine, which knows more of them than we do."""

    model_config = ConfigDict(extra="allow", strict=True)


class Closed(BaseModel):
    """An object that is ours alone: an unknown field in it is a mistake of the client's."""

    model_config = ConfigDict(extra="forbid", strict=True)


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

"""Pydantic bases and the pieces that several routes share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """A body we read: unknown fields are kept for the engine, which knows more of them than we do."""

    model_config = ConfigDict(extra="allow", strict=True)


class Closed(BaseModel):
    """An object that is ours alone: an unknown field in it is a mistake of the client's."""

    model_config = ConfigDict(extra="forbid", strict=True)

"""One line of a golden file."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from server.wire.common import Closed

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class GoldenRow(Closed):
    """A question, and where its answer stands: a file, a heading in it, words of a passage."""

    text: Words
    file: Words | None = Field(None)
    heading: Words | None = Field(None)
    passage: Words | None = Field(None)

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if self.file is None and self.passage is None:
            raise ValueError(
                "names neither the file nor words of the passage that it is answered by"
            )
        return self

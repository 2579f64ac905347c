"""What the commands that work on the data directory share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.embed.base import Embedder
    from server.settings import Settings


#: Settings that commands on the data directory take as flags.
LOCAL_SETTINGS = (
    "data_dir",
    "models_dir",
    "catalog_url",
    "chroma_url",
    "embedder",
    "embedder_backend",
)


def clean(text: str) -> str:
    """Text of unknown origin for a terminal: control characters must not reach it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


async def open_embedder(settings: Settings, *, quiet: bool) -> Embedder:
    """The configured embedder, loaded in a thread. Raises EmbedderError, BundledModelError."""
    from anyio import to_thread

    from server import embedding

    def say(step: str) -> None:
        if not quiet:
            print(step, file=sys.stderr)

    return await to_thread.run_sync(embedding.open_embedder, settings, say)

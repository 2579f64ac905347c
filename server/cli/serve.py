"""`groundwire serve`: the server. Flags that are no settings of ours are passed on to vLLM.

Exit status: 0 after SIGTERM or Ctrl-C, 1 when a part cannot start or the engine dies, 2 for a bad setting.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from server.cli.local import LOCAL_SETTINGS

if TYPE_CHECKING:
    from server.listener import Listener
    from server.settings import Settings
    from server.start import StartTrace

log = logging.getLogger("groundwire.serve")

#: The settings that have a flag here; the rest are set by environment or file.
SETTINGS = (
    "host",
    "port",
    "public_url",
    "profile",
    "engine",
    "model",
    "default_store",
    *LOCAL_SETTINGS,
    "published_dir",
    "top_k",
    "max_context_tokens",
    "tool_call_parser",
    "shutdown_seconds",
    "otlp_endpoint",
    "log_level",
    "log_format",
)


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        "serve",
        help="start the server",
        description="Start the OpenAI-compatible server. Any `vllm serve` flag may follow.",
        epilog="Every other flag goes to vLLM, for example: groundwire serve --model "
        "Qwen/Qwen3-4B --max-model-len 8192 --gpu-memory-utilization 0.9",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - all of it is in settings
    """Serve until told to stop."""
    from server.telemetry import logs

    logs.set_up(settings.log_level, settings.log_format, content=settings.log_content)
    if settings.engine != "vllm" and settings.vllm_args:
        flags = " ".join(settings.vllm_args)
        print(
            f"groundwire: unrecognized arguments for the {settings.engine} engine: {flags}",
            file=sys.stderr,
        )
        return 2
    # Parts of a start block the event loop: only a real signal handler is heard then.
    signal.signal(signal.SIGTERM, _interrupt)
    from server.listener import run_in_loop

    return run_in_loop(_serve(settings))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


async def _serve(settings: Settings) -> int:
    from server.start import StartTrace, process_began

    start = StartTrace(process_began())
    from server.app import create_app
    from server.listener import Listener
    from server.services import open_services

    start.record("imports")
    progress = _Progress(start, as_json=settings.log_format == "json")
    try:
        _check_port(settings)
        async with open_services(settings, progress, start=start) as services:
            listener = Listener(
                create_app(settings, services),
                settings,
                on_started=lambda url: progress.ready(url, needs_key=bool(services.keys)),
                on_stopping=services.admission.drain,
            )
            watch = asyncio.ensure_future(_stop_when(services.dead, listener))
            try:
                await listener.serve()
            finally:
                watch.cancel()
            # What is left is quick, and must not be cut off by a supervisor that asks twice.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            died = services.dead.is_set()
        if died:
            progress.last("the engine has died; the server ends")
            _end_at_once()
        progress("stopped")
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except SystemExit:  # uvicorn's, which has logged why it cannot listen
        return 1
    except Exception as error:  # whichever part it was, the reader needs its message, not our stack
        logging.getLogger(__name__).debug("start failed", exc_info=True)
        progress.last(f"cannot start: {error}")
        return 1
    return 0 if listener.started else 1


def _check_port(settings: Settings) -> None:
    """Raises OSError for a port that cannot be had, before the minute that an engine takes."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host} port {settings.port}"
            raise OSError(f"{where}: {error.strerror}; --host and --port choose another") from error


def _end_at_once() -> NoReturn:
    """End with status 1 and nothing more said, whatever a dead engine's libraries print at exit."""
    os._exit(1)


async def _stop_when(event: asyncio.Event, listener: Listener) -> None:
    await event.wait()
    listener.stop()


class _Progress:
    """Says on stderr what the start is doing, with the seconds so far, and at the end what took how long.

    Where the log is JSON, it says so there.
    """

    def __init__(self, start: StartTrace, *, as_json: bool) -> None:
        self._start = start
        self._as_json = as_json

    def __call__(self, step: str) -> None:
        self._say(f"[{self._start.elapsed_seconds():5.1f} s] {step}")

    def last(self, why: str) -> None:
        """Say why the server ends."""
        if self._as_json:
            log.critical("%s", why)
        else:
            self._say(f"groundwire: {why}")

    def ready(self, url: str, *, needs_key: bool) -> None:
        from server.start import described

        self("the start, step by step:")
        self._say("\n".join(f"  {line}" for line in described(self._start.records)))
        self(f"Groundwire is ready on {url}")
        if self._as_json:
            return
        key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
        body = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "What is Groundwire?"}]}'
        self._say(
            f"\nTry it:\n  curl {url}/v1/chat/completions{key} \\\n"
            f"    -H 'Content-Type: application/json' \\\n    -d '{body}'\n"
        )

    def _say(self, text: str) -> None:
        if self._as_json:
            log.info("%s", text)
        else:
            print(text, file=sys.stderr, flush=True)

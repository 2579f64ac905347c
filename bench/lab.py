"""What the scenarios share: options, servers that start when first asked for, and requests."""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from bench.servers import PROGRAM, STORE, Server, bare_vllm, groundwire
from bench.synthetic import TOPICS, Topics, embed_topics, write_store
from server.bundled import chat_model_flags, prepare_chat_model
from server.settings import BUNDLED_CHAT_MODEL, load_settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides over the same engine and flags."""

    bare: Server
    ours: Server

    @property
    def sides(self) -> tuple[Server, Server]:
        return self.bare, self.ours


class Lab:
    """Owns the folder and the servers of one run; everything ends with its `async with` block."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.client = httpx.AsyncClient(timeout=600)
        self._servers = ExitStack()
        self._searching = self._servers.enter_context(ExitStack())
        self._paired = self._servers.enter_context(ExitStack())
        self._topics: Topics | None = None
        self._pair: Pair | None = None
        self._searcher: Server | None = None

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.client.aclose()
        self._servers.close()

    @property
    def rounds(self) -> int:
        rounds: int = self.options.rounds
        return rounds

    @property
    def scripted(self) -> bool:
        """Whether no real engine is wanted: the machinery is tried, nothing is measured."""
        return bool(self.options.engine == "scripted")

    @property
    def engine_flags(self) -> list[str]:
        if self.scripted:
            return []
        flags = ["--max-model-len=4096", *chat_model_flags()]
        return [*flags, "--enforce-eager"] if self.options.eager else flags

    async def topics(self) -> Topics:
        """What made-up passages are made from."""
        if self._topics is None:
            count = 8 if self.options.quick else TOPICS
            print(f"  embedding {count} topics", flush=True)
            self._topics = await asyncio.to_thread(embed_topics, count)
        return self._topics

    async def data_dir(self) -> Path:
        """A data directory whose store `bench` holds `--chunks` passages."""
        path = self.folder / "data"
        if not path.exists():
            topics = await self.topics()
            print(f"  writing {self.options.chunks} passages", flush=True)
            await write_store(path, STORE, self.options.chunks, topics)
        return path

    async def pair(self) -> Pair:
        """Bare vLLM and Groundwire with a real engine, or both scripted where the run is."""
        if self._pair is None:
            data = await self.data_dir()
            self.end_searcher()  # an owner of the directory that nobody needs any longer
            print("  starting both servers", flush=True)
            bare = self._paired.enter_context(self.bare())
            self._pair = Pair(bare, self._paired.enter_context(self.ours(data)))
        return self._pair

    async def searcher(self) -> Server:
        """Groundwire over a scripted engine: what retrieval costs, and nothing else."""
        if self._searcher is None:
            data, log = await self.data_dir(), self.folder / "searcher.log"
            server = groundwire(data, log, model="", scripted=True)
            self._searcher = self._searching.enter_context(server)
        return self._searcher

    def end_searcher(self) -> None:
        self._searching.close()
        self._searcher = None

    def end_pair(self) -> None:
        """Stop both servers, to make room for another one."""
        self._paired.close()
        self._pair = None

    def bare(self) -> AbstractContextManager[Server]:
        """Bare vLLM, not started yet, with the flags of this run."""
        log = self.folder / "bare.log"
        if self.scripted:
            data = self.folder / "bare-data"
            return groundwire(data, log, model="", store=None, scripted=True, name="bare")
        model = prepare_chat_model(load_settings().models_dir, print)
        return bare_vllm(model, BUNDLED_CHAT_MODEL, self.engine_flags, log)

    def ours(
        self, data: Path, *, program: Sequence[str] = PROGRAM
    ) -> AbstractContextManager[Server]:
        """Groundwire over `data`, not started yet, with the same flags; `program` in place of its command."""
        return groundwire(
            data,
            self.folder / ("groundwire.log" if program == PROGRAM else "other.log"),
            model=BUNDLED_CHAT_MODEL,
            flags=self.engine_flags,
            scripted=self.scripted,
            program=program,
        )


def body(content: str, tokens: int) -> dict[str, Any]:
    """A chat request that always answers `tokens` tokens.

    It has a fresh salt, or the prefix cache would answer in place of the prefill.
    """
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "cache_salt": secrets.token_hex(8),
    }


async def alternate(
    names: tuple[str, ...],
    rounds: int,
    one: Callable[[str, int], Awaitable[T]],
    *,
    warm: bool = True,
) -> dict[str, list[T]]:
    """`one(name, round)` for each name in each round, 1 to `rounds`; the order turns round with each.

    With `warm`, a round 0 comes first and is not kept.
    """
    kept: dict[str, list[T]] = {name: [] for name in names}
    for number in range(0 if warm else 1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            result = await one(name, number)
            if number:
                kept[name].append(result)
        print(".", end="", flush=True)
    print()
    return kept

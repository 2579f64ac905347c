"""Mixed traffic at two servers: what it asks moves every metric that the dashboards draw.

`engine` has the real engine and a store that is ingested into while it answers. `replica` has the scripted engine, a
published index, a reranker, few places, and routes to the other one.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
import psutil

from retrieval.search.lease import Published
from tests.engine.real import FACT
from tests.server.api.bench import DEADLINE_SECONDS, GROUNDWIRE, ROUTE, chat, eventually

KEY = "k"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
QUESTIONS = (
    "For how many days is the Zorvane lamp guaranteed?",
    "How long is Morva tea steeped?",
    "What does the Quibble clause say?",
    "Where do claims about a lamp go?",
)
NOWHERE = "xylophone zugzwang qwerty"
GOLDEN = (
    '{"text": "For how many days is the Zorvane lamp guaranteed?", "file": "lamp.md"}\n'
    '{"text": "How long is Morva tea steeped?", "file": "tea.txt"}\n'
    '{"text": "What does the Quibble clause say?", "passage": "Quibble clause"}\n'
)


@dataclass
class Traffic:
    """Who asks what, until it is stopped; what goes wrong in a thread is raised at the end."""

    engine_url: str
    replica_url: str
    engine_home: Path
    folder: Path
    published: Path
    #: Whether Prometheus has seen something by now: an expression that gives series.
    seen: Callable[[str], bool]
    stopping: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Let it flow while the block runs."""
        streams = (
            self.grounded, self.others, self.leaving, self.wrong, self.routed, self.crowds, self.nowhere,
        )  # fmt: skip
        with ThreadPoolExecutor(len(streams)) as pool:
            running = [pool.submit(self._repeated, one) for one in streams]
            try:
                yield
            finally:
                self.stopping.set()
        for one in running:
            one.result()

    def _repeated(self, ask: Callable[[httpx.Client, int], None]) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(headers=headers, timeout=DEADLINE_SECONDS, trust_env=False) as client:
            for number in count():
                ask(client, number)
                if self.stopping.wait(0.3):
                    return

    # Streams of the real engine

    def grounded(self, client: httpx.Client, number: int) -> None:
        body = chat(
            QUESTIONS[number % len(QUESTIONS)], stream=True, max_tokens=8 + 8 * (number % 3)
        )
        client.post(self.engine_url + ROUTE, json=body, headers=TRACE).raise_for_status()

    def others(self, client: httpx.Client, number: int) -> None:
        """Without sources; a conversation whose sources stay; the same exact answer again; the other routes."""
        url = self.engine_url
        plain = chat("Say hello.", max_tokens=6, rag={"enabled": False}, stream=True)
        client.post(url + ROUTE, json=plain).raise_for_status()
        turns = chat(QUESTIONS[0], max_tokens=4, rag={"sticky": True})
        first = client.post(url + ROUTE, json=turns).json()["choices"][0]["message"]
        turns["messages"] += [
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": QUESTIONS[3]},
        ]
        client.post(url + ROUTE, json=turns).raise_for_status()
        client.post(url + ROUTE, json=chat(QUESTIONS[1], max_tokens=4, temperature=0))
        narrow = chat(QUESTIONS[2], max_tokens=4, rag={"max_context_tokens": 40})
        client.post(url + ROUTE, json=narrow).raise_for_status()
        client.post(
            f"{url}/v1/embeddings", json={"model": "text-embedding-3-small", "input": f"{number}"}
        )

    def leaving(self, client: httpx.Client, number: int) -> None:
        """A client that goes away after the first bytes."""
        body = chat(f"{number}: {QUESTIONS[0]}", stream=True, max_tokens=64)
        with client.stream("POST", self.engine_url + ROUTE, json=body) as response:
            next(response.iter_text())

    def wrong(self, client: httpx.Client, number: int) -> None:
        """Requests that are wrong themselves, and one that is only asked what it would see."""
        assert client.post(self.engine_url + ROUTE, json={"messages": []}).status_code == 400
        dry = chat(QUESTIONS[number % 4], rag={"dry_run": True})
        client.post(self.engine_url + ROUTE, json=dry).raise_for_status()

    # At the replica

    def routed(self, client: httpx.Client, number: int) -> None:
        """`auto` to the small and the large model, one engine that is not there, a tenant of its own."""
        url = self.replica_url + ROUTE
        easy, hard = (
            chat(f"{word}{QUESTIONS[number % 4]}") for word in ("", "Explain step by step. ")
        )
        client.post(url, json={**easy, "model": "auto", "stream": True})
        client.post(url, json={**hard, "model": "auto", "stream": True, "max_tokens": 48})
        client.post(url, json={**easy, "model": "gone"})
        client.post(url, json=easy, headers={"authorization": "Bearer other"})
        client.post(url, json={**easy, "stream": True}, headers={"authorization": "Bearer wrong"})

    def crowds(self, client: httpx.Client, number: int) -> None:
        """More at once than there are places: some wait, some are refused."""
        with ThreadPoolExecutor(6) as pool:
            bodies = [
                chat(f"{number} {each} {QUESTIONS[each % 4]}", stream=True) for each in range(6)
            ]
            answers = list(
                pool.map(lambda body: client.post(self.replica_url + ROUTE, json=body), bodies)
            )
        assert {answer.status_code for answer in answers} <= {200, 429, 503}

    def nowhere(self, client: httpx.Client, number: int) -> None:
        """Nothing in the documents is about it."""
        client.post(
            self.engine_url + ROUTE, json=chat(f"{NOWHERE} {number}", max_tokens=4, stream=True)
        )

    # What changes the index

    def ingest(self, *paths: Path, publish: bool = False) -> int:
        """The exit status of an ingest, beside the servers."""
        with self._ingesting(*paths, publish=publish) as popen:
            return popen.wait(2 * DEADLINE_SECONDS)

    def long_ingest(self, *paths: Path) -> int:
        """The same, stopped at its beginning until Prometheus has seen that one runs."""
        with self._ingesting(*paths) as popen:
            eventually(lambda: (self.engine_home / "ingest.lock").read_text() == f"{popen.pid}\n")
            psutil.Process(popen.pid).suspend()
            eventually(lambda: self.seen("groundwire_ingest_running > 0"))
            psutil.Process(popen.pid).resume()
            return popen.wait(2 * DEADLINE_SECONDS)

    def _ingesting(self, *paths: Path, publish: bool = False) -> subprocess.Popen[bytes]:
        home = self.published.parent / "writer" if publish else self.engine_home
        flags = ["--publish", str(self.published)] if publish else []
        return subprocess.Popen(
            [GROUNDWIRE, "ingest", *paths, "--store", "facts", "--prune", "--quiet", *flags],
            env={**os.environ, "GROUNDWIRE_DATA_DIR": str(home)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill_chroma(self) -> None:
        """It hangs, so that searches take too long; then it dies, and the server has to start another."""
        lease = Published.read(self.engine_home)
        assert lease is not None
        chroma = psutil.Process(lease.pid)
        chroma.suspend()
        eventually(lambda: self.seen('groundwire_retrievals_total{status="degraded"} > 0'))
        chroma.kill()
        eventually(lambda: self.seen("groundwire_chroma_restarts_total > 0"))

    def story(self) -> None:
        """Ingests that succeed and fail, a version that is taken over and one that cannot be, a Chroma that dies."""
        (self.folder / "news.md").write_text(f"# News\n\n{FACT} Desk nine has moved.\n")
        assert self.long_ingest(self.folder) == 0
        assert self.ingest(self.folder, publish=True) == 0
        eventually(lambda: self.seen('groundwire_index_handovers_total{outcome="ok"} > 0'))
        whole = (self.published / "CURRENT").read_text()
        (self.published / "CURRENT").write_text("v-999\n")
        eventually(lambda: self.seen('groundwire_index_handovers_total{outcome="failed"} > 0'))
        (self.published / "CURRENT").write_text(whole)
        self.kill_chroma()
        # What the canary asks for goes, and something comes that cannot be read.
        (self.folder / "tea.txt").unlink()
        (self.folder / "broken.pdf").write_bytes(b"%PDF-1.4 no such thing")
        assert self.ingest(self.folder, self.folder / "broken.pdf") == 1
        eventually(lambda: self.seen('groundwire_canary_questions{outcome="gone"} > 0'))
        eventually(lambda: self.seen('groundwire_ingest_runs_total{outcome="partial"} > 0'))

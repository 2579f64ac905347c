"""Two servers answer from what a third process publishes, through every hand-over."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from server.published import publish, take
from tests.deploy.publishing_child import SUBJECTS
from tests.server.api.bench import DEADLINE_SECONDS, ROUTE, chat, eventually
from tests.server.api.test_process import Process, serving

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("publishing_child.py")
KEY = "sk-published"
HEADERS = {"authorization": f"Bearer {KEY}"}
CLIENTS = 50
TOP_K = 4
#: A whole answer takes longer than any hand-over; clients that want a short one say so.
SCRIPT = {"answer": "word " * 3000, "token_seconds": 0.01, "prefill_seconds": 0.1}
SHORT = {"max_tokens": 10}


class Writer:
    """The writing process; edition n becomes version n as long as all goes well."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def publish(self) -> int:
        """The next edition's version."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write("next\n")
        self._popen.stdin.flush()
        return int(self._popen.stdout.readline())


@dataclass
class World:
    """A published directory, its writer and two servers."""

    published: Path
    writer: Writer
    servers: list[Process] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        return [server.ready() for server in self.servers]

    def version(self, server: int) -> int:
        answer = httpx.get(f"{self.urls[server]}/ready", timeout=DEADLINE_SECONDS, trust_env=False)
        return int(answer.json()["index_version"])

    def converged(self, version: int) -> bool:
        return all(self.version(server) == version for server in range(len(self.servers)))

    def failures(self, server: int) -> float:
        page = httpx.get(f"{self.urls[server]}/metrics", headers=HEADERS, trust_env=False).text
        found = re.search(r'index_handovers_total\{outcome="failed"\} (\S+)', page)
        return float(found[1]) if found else 0.0

    def copies(self, server: int) -> list[Path]:
        return list(self.servers[server].data_dir.glob("copy-*"))

    def chromas(self, server: int) -> int:
        process = psutil.Process(self.servers[server].popen.pid)
        return sum("launch.py" in " ".join(child.cmdline()) for child in process.children())

    def kept(self) -> set[str]:
        return {path.name for path in self.published.iterdir()}


@contextmanager
def writing(folder: Path) -> Iterator[World]:
    published = folder / "published"
    popen = subprocess.Popen(
        [sys.executable, CHILD, folder / "documents", folder / "work", published],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with popen:
        yield World(published, Writer(popen))


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """A world whose servers answer from version 1."""
    with writing(folder) as world, ExitStack() as stack:
        world.servers = [
            stack.enter_context(
                serving(
                    folder / f"server-{number}", SCRIPT, api_keys=KEY, default_store="docs",
                    published_dir=str(world.published), published_poll_seconds="0.2",
                    # What is shown is that nothing fails, on a machine that does all of it at once.
                    retrieval_timeout_seconds=str(DEADLINE_SECONDS),
                )
            )
            for number in range(2)
        ]  # fmt: skip
        assert all(world.version(server) == 0 for server in range(2))
        assert world.writer.publish() == 1
        eventually(lambda: world.converged(1))
        yield world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("world")) as made:
        yield made


def question(number: int) -> str:
    return list(SUBJECTS.values())[number % len(SUBJECTS)]


def editions(rag: dict[str, Any]) -> set[int]:
    """The editions that an answer's sources are of; there are always as many sources as were asked for."""
    found = [one for page in rag["search_results"] for one in page["data"]]
    assert len(found) == TOP_K
    texts = [part["text"] for one in found for part in one["content"]]
    return {int(re.findall(r"edition (\d+)", text)[0]) for text in texts}


def rag_of(response: httpx.Response) -> dict[str, Any]:
    """The receipt of a whole answer or of a stream that came to its end."""
    assert response.status_code == 200, response.text
    assert response.headers["x-rag-status"] == "hit", response.text
    if not response.headers["content-type"].startswith("text/event-stream"):
        return orjson.loads(response.content)["rag"]  # type: ignore[no-any-return]
    events = response.text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert not any("error" in chunk for chunk in chunks)
    return next(chunk["rag"] for chunk in chunks if "rag" in chunk)  # type: ignore[no-any-return]


async def keep_asking(url: str, number: int, done: asyncio.Event, taken: list[float]) -> int:
    """One client, until `done`; returns the newest edition that it was answered from."""
    newest = 0
    async with httpx.AsyncClient(
        base_url=url, headers=HEADERS, timeout=DEADLINE_SECONDS, trust_env=False
    ) as http:
        while not done.is_set():
            stream = len(taken) % 2 == 0
            body = chat(question(number), stream=stream, rag={"include_text": True}, **SHORT)
            response = await http.post(ROUTE, json=body)
            taken.append(response.elapsed.total_seconds())
            (edition,) = editions(rag_of(response))
            assert edition >= newest
            newest = edition
    return newest


async def ask_while(world: World, versions: range) -> list[float]:
    """Fifty clients ask while these versions are published; the seconds of each answer."""
    done, taken = asyncio.Event(), list[float]()
    async with asyncio.TaskGroup() as group:
        asking = [
            group.create_task(keep_asking(world.urls[number % 2], number, done, taken))
            for number in range(CLIENTS)
        ]
        for version in versions:
            assert await asyncio.to_thread(world.writer.publish) == version
        await asyncio.to_thread(eventually, lambda: world.converged(versions[-1]))
        done.set()
    assert all(task.result() >= versions[0] - 1 for task in asking)
    return taken


def settled(world: World) -> None:
    """Nothing is left of the versions before."""
    for server in range(2):
        eventually(lambda server=server: len(world.copies(server)) == 1)
        eventually(lambda server=server: world.chromas(server) == 1)
        assert world.failures(server) == 0


def check_through(world: World, versions: range) -> None:
    taken = asyncio.run(ask_while(world, versions))
    last = versions[-1]
    assert world.kept() == {"CURRENT", "writer.lock", "ingests.json", f"v-{last - 1}", f"v-{last}"}
    settled(world)
    taken.sort()
    print(f"{len(taken)} answers, median {taken[len(taken) // 2]:.2f} s, longest {taken[-1]:.2f} s")


def test_no_request_fails_while_versions_come(world: World) -> None:
    check_through(world, range(2, 5))


def test_a_version_stays_open_for_the_stream_that_began_on_it(world: World) -> None:
    before = world.version(0)
    with httpx.Client(
        base_url=world.urls[0], headers=HEADERS, timeout=DEADLINE_SECONDS, trust_env=False
    ) as client:
        body = chat(question(0), stream=True, rag={"include_text": True})
        with client.stream("POST", ROUTE, json=body) as response:
            chunks = response.iter_text()
            assert f"edition {before}." in next(chunks)
            version = world.writer.publish()
            eventually(lambda: world.converged(version))
            assert newest_edition(world) == version
            assert len(world.copies(0)) == world.chromas(0) == 2
            assert "word" in next(chunks)
    settled(world)


def test_a_citation_s_link_is_valid_on_the_other_server(world: World) -> None:
    first, second = world.urls
    answer = httpx.post(
        first + ROUTE, headers=HEADERS, json=chat(question(1), **SHORT), trust_env=False
    )
    (message,) = [choice["message"] for choice in answer.json()["choices"]]
    link = message["annotations"][0]["url_citation"]["url"]
    assert "signature=" in link
    assert link.startswith(first)
    there = httpx.get(second + link.removeprefix(first), trust_env=False)
    assert there.status_code == 200
    assert "edition" in there.json()["text"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/vector_stores", "/v1/vector_stores/x/files/y"])
def test_documents_are_not_taken(world: World, method: str, path: str) -> None:
    answer = httpx.request(method, world.urls[0] + path, headers=HEADERS, trust_env=False)
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["code"] == "read_only_index"
    assert "groundwire ingest" in error["message"]
    assert httpx.request(method, world.urls[0] + path, trust_env=False).status_code == 401


def test_a_version_that_lost_something_changes_nothing(world: World, tmp_path: Path) -> None:
    """Last, for it leaves failures behind."""
    before = world.version(0)
    edition = newest_edition(world)
    # Copied as it was published, and yet not whole: the vectors were lost before.
    take(world.published, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "chroma")
    assert publish(tmp_path / "broken", world.published) == before + 1
    eventually(lambda: world.failures(0) > 0 and world.failures(1) > 0)
    assert world.converged(before)
    assert newest_edition(world) == edition
    for server in range(2):
        said = "\n".join(world.servers[server].lines)
        assert f"version {before} goes on answering: version {before + 1} is not whole" in said
        assert "0 vectors" in said
    # The next ingest mends what it starts from.
    assert world.writer.publish() == before + 2
    eventually(lambda: world.converged(before + 2))
    assert newest_edition(world) == edition + 1


def newest_edition(world: World) -> int:
    """What a question is answered from now, by the first server."""
    body = chat(question(2), rag={"include_text": True}, **SHORT)
    answer = httpx.post(world.urls[0] + ROUTE, headers=HEADERS, json=body, trust_env=False)
    (edition,) = editions(rag_of(answer))
    return edition


@pytest.mark.slow
def test_no_request_fails_while_twenty_versions_come(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        check_through(world, range(2, 21))

"""A closed-loop client in a process of its own: N callers on raw keep-alive sockets.

An HTTP library would spend more CPU on a request than the server does, and both share the cores.
Usage: `python -m bench.callers HOST PORT PATH CALLERS REQUESTS` with one JSON body a line on stdin;
prints `{"seconds": …, "latencies_ms": […], "stages_ms": {stage: […]}}`, the last from `Server-Timing`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple


class Endpoint(NamedTuple):
    host: str
    port: int
    path: str


@dataclass
class Seen:
    """What all callers have measured so far."""

    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)


def request_bytes(to: Endpoint, body: bytes) -> bytes:
    head = (
        f"POST {to.path} HTTP/1.1\r\nHost: {to.host}:{to.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def call(to: Endpoint, bodies: Iterator[bytes], seen: Seen) -> None:
    """Send bodies one after the other until none is left. Raises RuntimeError at the first refusal."""
    reader, writer = await asyncio.open_connection(to.host, to.port)
    try:
        for body in bodies:
            start = time.perf_counter()
            writer.write(request_bytes(to, body))
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.readexactly(int(header(head, b"content-length") or b"0"))
            seen.latencies_ms.append((time.perf_counter() - start) * 1000)
            if b" 200 " not in head[:16]:
                raise RuntimeError(f"{to.path}: {head[:60]!r} {content[:300]!r}")
            for stage, ms in stages(header(head, b"server-timing")).items():
                seen.stages_ms.setdefault(stage, []).append(ms)
    finally:
        writer.close()


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header, by its name in small letters; empty when there is none."""
    for line in head.split(b"\r\n"):
        key, _, found = line.partition(b":")
        if key.lower() == name:
            return found.strip()
    return b""


def stages(server_timing: bytes) -> dict[str, float]:
    """Milliseconds by stage, from the value of `Server-Timing`."""
    entries = [item.partition(";dur=") for item in server_timing.decode().split(", ") if item]
    return {stage: float(ms) for stage, _, ms in entries}


async def main(host: str, port: str, path: str, callers: str, requests: str) -> None:
    to = Endpoint(host, int(port), path)
    lines = sys.stdin.buffer.read().splitlines()
    bodies = itertools.islice(itertools.cycle(lines), int(requests))
    seen = Seen()
    start = time.perf_counter()
    await asyncio.gather(*(call(to, bodies, seen) for _ in range(int(callers))))
    print(json.dumps({"seconds": time.perf_counter() - start, **asdict(seen)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

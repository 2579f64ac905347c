"""A closed-loop client in a process of its own: N callers on raw keep-alive sockets.

An HTTP library would spend more CPU on a request than the server does, and both share the cores.
Usage: `python -m bench.callers HOST PORT PATH CALLERS REQUESTS` with one JSON body a line on stdin;
prints `{"seconds": …, "latencies_ms": […]}`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple


class Endpoint(NamedTuple):
    host: str
    port: int
    path: str


def request_bytes(to: Endpoint, body: bytes) -> bytes:
    head = (
        f"POST {to.path} HTTP/1.1\r\nHost: {to.host}:{to.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def call(to: Endpoint, bodies: Iterator[bytes], latencies: list[float]) -> None:
    """Send bodies one after the other until none is left. Raises RuntimeError at the first refusal."""
    reader, writer = await asyncio.open_connection(to.host, to.port)
    try:
        for body in bodies:
            start = time.perf_counter()
            writer.write(request_bytes(to, body))
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.readexactly(_content_length(head))
            latencies.append((time.perf_counter() - start) * 1000)
            if b" 200 " not in head[:16]:
                raise RuntimeError(f"{to.path}: {head[:60]!r} {content[:300]!r}")
    finally:
        writer.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise RuntimeError("the answer has no Content-Length")


async def main(host: str, port: str, path: str, callers: str, requests: str) -> None:
    to = Endpoint(host, int(port), path)
    lines = sys.stdin.buffer.read().splitlines()
    bodies = itertools.islice(itertools.cycle(lines), int(requests))
    latencies: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(call(to, bodies, latencies) for _ in range(int(callers))))
    print(json.dumps({"seconds": time.perf_counter() - start, "latencies_ms": latencies}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

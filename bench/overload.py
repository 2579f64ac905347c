"""More requests than a server can take, from a process of its own: `python -m bench.overload URL --rate 40`.

Three parts: quiet (one caller), overload (requests at a fixed rate, whatever the answers do), recovery (one
caller again). Prints one JSON object. Latencies are the client's, its own waiting for the processor included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

ROUTE = "/v1/chat/completions"
QUIET_REQUESTS = 10
#: A recovered server is one that answers within this many times its quiet time to first token.
RECOVERED = 1.5


@dataclass
class Seen:
    """Seconds to the first token of what was accepted, seconds of what was refused, and other statuses."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    broken: int = 0
    resident_bytes: list[int] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, body: dict[str, Any], seen: Seen) -> float | None:
    """One streamed request, read to its end; its seconds to the first token if it was accepted."""
    start = time.perf_counter()
    first = None
    try:
        async with client.stream("POST", ROUTE, json=body) as response:
            if response.status_code in (429, 503):
                await response.aread()
                seen.refused.append(time.perf_counter() - start)
                seen.without_retry_after += "retry-after" not in response.headers
                return None
            ended = False
            async for line in response.aiter_lines():
                if first is None and '"content":"' in line and '"content":""' not in line:
                    first = time.perf_counter() - start
                ended = ended or line == "data: [DONE]"
    except httpx.HTTPError:
        first, ended = None, False
    if first is None or not ended:
        seen.broken += 1
        return None
    seen.accepted.append(first)
    return first


async def overload(
    client: httpx.AsyncClient, body: dict[str, Any], rate: float, seconds: float, pid: int | None
) -> Seen:
    """Requests at `rate` a second for so long, and then all of them to their ends."""
    seen, tasks = Seen(), []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(start + number / rate - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(ask(client, body, seen)))
        if pid is not None and number % max(int(rate), 1) == 0:
            seen.resident_bytes.append(resident_bytes(pid))
    await asyncio.gather(*tasks)
    return seen


async def recovery(
    client: httpx.AsyncClient, body: dict[str, Any], good: float, limit_seconds: float = 60.0
) -> float | None:
    """Seconds until a request is as quick as in quiet; None if it never is."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit_seconds:
        first = await ask(client, body, Seen())
        if first is not None and first <= good:
            return time.perf_counter() - start
    return None


def resident_bytes(pid: int) -> int:
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process(pid).memory_info().rss)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """What should be zero when all is over."""
    page = (await client.get("/metrics")).text
    pattern = r"^groundwire_(requests_in_flight|admission_queue_length)(?:\{[^}]*\})? (\S+)$"
    found: dict[str, float] = {}
    for name, value in re.findall(pattern, page, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


async def settled(client: httpx.AsyncClient, limit_seconds: float = 5.0) -> dict[str, float]:
    """The gauges when they are zero, or as they are after the limit: a place is freed just after its last byte."""
    start = time.perf_counter()
    while any((left := await gauges(client)).values()):
        if time.perf_counter() - start > limit_seconds:
            break
        await asyncio.sleep(0.05)
    return left


def percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else None


def growth(values: list[int]) -> float | None:
    """Median of the last third over the median of the first."""
    third = len(values) // 3
    if not third:
        return None
    return statistics.median(values[-third:]) / statistics.median(values[:third])


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    body = {"model": args.model, "messages": [{"role": "user", "content": args.question}]}
    body |= {"stream": True, "max_tokens": args.max_tokens}
    headers = {"authorization": f"Bearer {args.key}"} if args.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(
        base_url=args.url, headers=headers, limits=limits, timeout=600, trust_env=False
    ) as client:
        quiet = Seen()
        for _ in range(QUIET_REQUESTS):
            await ask(client, body, quiet)
        if not quiet.accepted:
            raise SystemExit("no request was answered while all was quiet")
        calm = statistics.median(quiet.accepted)
        seen = await overload(client, body, args.rate, args.seconds, args.pid)
        recovered = await recovery(client, body, RECOVERED * calm)
        left = await settled(client)
    return {
        "rate": args.rate,
        "seconds": args.seconds,
        "quiet_ttft_seconds": calm,
        "accepted": len(seen.accepted),
        "accepted_ttft_p50_seconds": percentile(seen.accepted, 0.5),
        "accepted_ttft_p99_seconds": percentile(seen.accepted, 0.99),
        "refused": len(seen.refused),
        "refused_p50_seconds": percentile(seen.refused, 0.5),
        "refused_p99_seconds": percentile(seen.refused, 0.99),
        "refused_without_retry_after": seen.without_retry_after,
        "broken": seen.broken,
        "resident_growth": growth(seen.resident_bytes),
        "recovery_seconds": recovered,
        "gauges": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--question", default="How many days may a loan of the reading room last?")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--key", help="API key")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()

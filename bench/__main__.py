"""`make bench`: bare vLLM and Groundwire side by side, in alternating rounds; ratios with their intervals.

Writes `docs/performance.json` (all numbers, with the conditions) and the tables of `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.corpus import question, write_corpus
from bench.load import Timed, burst
from bench.report import conditions, write_report
from bench.servers import GROUNDWIRE, bare_vllm, groundwire
from bench.stats import median_of_rounds, paired_ratio
from server.bundled import chat_model_flags, prepare_chat_model
from server.settings import BUNDLED_CHAT_MODEL, load_settings

ROOT = Path(__file__).parents[1]
PLAIN_PROMPT = "Write a long story about a lighthouse. " * 12


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=2000, help="passages in the store")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--eager", action="store_true", help="skip compilation; quicker to start")
    parser.add_argument("--out", type=Path, default=ROOT, help="the project to write into")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="groundwire-bench-") as folder:
        results = run(options, Path(folder))
    write_report(results, options.out)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start both servers, measure, stop them."""
    model = prepare_chat_model(load_settings().models_dir, print)
    data_dir = folder / "data"
    print(f"ingesting {options.chunks} passages")
    write_corpus(folder / "corpus", options.chunks)
    ingest = [str(GROUNDWIRE), "ingest", str(folder / "corpus"), "--store", "bench", "--quiet"]
    ingest += ["--data-dir", str(data_dir)]
    subprocess.run(ingest, check=True)
    flags = ["--max-model-len=4096", *chat_model_flags()]
    flags += ["--enforce-eager"] if options.eager else []
    print("starting both servers (some minutes)")
    with (
        bare_vllm(model, BUNDLED_CHAT_MODEL, flags, folder / "bare.log") as bare,
        groundwire(flags, data_dir, "bench", folder / "groundwire.log") as ours,
    ):
        return asyncio.run(measure(options, bare, ours, flags))


async def measure(
    options: argparse.Namespace, bare: str, ours: str, flags: list[str]
) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=600) as client:
        bench = Bench(client, options, bare, ours)
        comparisons = {}
        for concurrency in options.concurrency:
            comparisons[f"off_c{concurrency}"] = await bench.compare(
                bench.plain, concurrency, max(concurrency, 4)
            )
        # Each pair costs a third prefill, the one that shows the prompt.
        comparisons["grounded_c1"] = await bench.compare(bench.grounded, 1, 2)
        stages = await bench.stages()
    return {
        "conditions": conditions(options, flags),
        "comparisons": comparisons,
        "stages_ms": stages,
    }


class Bench:
    """The measurements, over one pair of servers."""

    def __init__(
        self, client: httpx.AsyncClient, options: argparse.Namespace, bare: str, ours: str
    ) -> None:
        self._client = client
        self._options = options
        self._bare = bare
        self._ours = ours
        self._asked = 0

    async def compare(
        self, bodies: Callable[[], Any], concurrency: int, requests: int
    ) -> dict[str, Any]:
        """Alternate both sides for all rounds, after one unmeasured; ratios are ours over bare.

        `requests` is how many each side answers in a round.
        """
        rounds: dict[str, list[tuple[list[Timed], float]]] = {"ours": [], "bare": []}
        for number in range(self._options.rounds + 1):
            order = ("ours", "bare") if number % 2 else ("bare", "ours")
            pairs = [await bodies() for _ in range(requests)]
            for side in order:
                url = self._ours if side == "ours" else self._bare
                result = await self._side(url, [pair[side] for pair in pairs], concurrency)
                if number:
                    rounds[side].append(result)
            print(".", end="", flush=True)
        print()
        return _summary(rounds, concurrency)

    async def _side(
        self, url: str, bodies: list[dict[str, Any]], concurrency: int
    ) -> tuple[list[Timed], float]:
        if concurrency > 1:
            return await burst(self._client, url, bodies)
        answers: list[Timed] = []
        rates = []
        for body in bodies:
            one, rate = await burst(self._client, url, [body])
            answers += one
            rates.append(rate)
        return answers, median(rates)

    def _body(self, content: str) -> dict[str, Any]:
        return {
            "model": BUNDLED_CHAT_MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._options.tokens,
            "ignore_eos": True,
            "temperature": 0,
            # A fresh salt each request, or the prefix cache answers in place of the prefill.
            "cache_salt": secrets.token_hex(8),
        }

    async def plain(self) -> dict[str, dict[str, Any]]:
        """The same plain request for both; retrieval switched off for ours."""
        body = self._body(PLAIN_PROMPT)
        return {"bare": body, "ours": {**body, "rag": {"enabled": False}}}

    async def grounded(self) -> dict[str, dict[str, Any]]:
        """A grounded request for ours; for bare vLLM the very prompt that ours makes of it."""
        self._asked += 1
        body = self._body(question(self._asked))
        probe = {
            **body,
            "max_tokens": 1,
            "return_prompt_text": True,
            "cache_salt": secrets.token_hex(8),
        }
        answer = (await self._client.post(f"{self._ours}/v1/chat/completions", json=probe)).json()
        if answer["rag"]["status"] != "hit":
            raise RuntimeError(f"the question found nothing: {answer['rag']}")
        prompt: str = answer["prompt_text"]
        content = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        bare = {**body, "messages": [{"role": "user", "content": content}]}
        check = {"model": bare["model"], "messages": bare["messages"]}
        told = (await self._client.post(f"{self._bare}/tokenize", json=check)).json()
        if told["count"] != answer["usage"]["prompt_tokens"]:
            raise RuntimeError("the two prompts differ")
        return {"ours": body, "bare": bare}

    async def stages(self, requests: int = 20) -> dict[str, dict[str, float]]:
        """Milliseconds by stage over grounded requests, one at a time, as the response tells them."""
        seen: dict[str, list[float]] = {}
        for number in range(requests):
            body = {**self._body(question(10_000 + number)), "max_tokens": 16}
            answer = (
                await self._client.post(f"{self._ours}/v1/chat/completions", json=body)
            ).json()
            for stage, ms in answer["rag"]["timings_ms"].items():
                seen.setdefault(stage, []).append(ms)
        return {
            stage: {"p50": median(values), "p95": sorted(values)[int(len(values) * 0.95)]}
            for stage, values in seen.items()
        }


def _summary(
    rounds: dict[str, list[tuple[list[Timed], float]]], concurrency: int
) -> dict[str, Any]:
    metrics: dict[str, Callable[[tuple[list[Timed], float]], list[float]]] = {
        "ttft_ms": lambda result: [answer.ttft_seconds * 1000 for answer in result[0]],
        "itl_ms": lambda result: [answer.itl_seconds * 1000 for answer in result[0]],
        "tokens_per_second": lambda result: [result[1]],
    }
    summary: dict[str, Any] = {"concurrency": concurrency}
    for name, values in metrics.items():
        sides = {side: [values(result) for result in results] for side, results in rounds.items()}
        medians = {side: [median(values) for values in each] for side, each in sides.items()}
        summary[name] = {
            "bare": median_of_rounds(sides["bare"]),
            "ours": median_of_rounds(sides["ours"]),
            "ratio": asdict(paired_ratio(medians["ours"], medians["bare"])),
            "rounds": medians,
        }
    return summary


if __name__ == "__main__":
    main()

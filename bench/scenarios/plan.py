"""What `groundwire plan` predicts for this CPU, beside what its engine does: milliseconds of a decoded token."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from bench.corpus import question
from bench.figures import Figure, ratio, value
from bench.lab import Lab, body
from bench.load import timed
from bench.stats import Target
from server.bundled import prepare_chat_model
from server.capacity.flags import limits_of
from server.capacity.folder import read_folder
from server.capacity.hardware import Hardware
from server.capacity.roofline import decode_step_seconds
from server.settings import load_settings

#: The prediction is right within this factor, either way: what docs/capacity.md promises.
FACTOR = 2.5
#: What a layer costs beside reading its weights: vLLM on a CPU has no graphs to replay, each operation is begun from
#: Python. Between what SmolLM2's 30 layers took here: 57 ms a token eager and 35 compiled, of which reading is 10.
CPU_LAYER_SECONDS = 0.001
CPU_BLOCK_TOKENS = 128
THREADS = 2
REPEATS = 7
#: Tokens of a question with the chat template, about; their keys and values are a thousandth of the weights.
CONTEXT_TOKENS = 60


async def run(lab: Lab) -> list[Figure]:
    """Rounds of one request at a time on bare vLLM, each with the bandwidth measured just before."""
    folder = await asyncio.to_thread(prepare_chat_model, load_settings().models_dir, print)
    architecture = read_folder(folder)
    limits = limits_of(lab.engine_flags, architecture, CPU_BLOCK_TOKENS)
    read = architecture.bytes_read_a_step(limits.dtype_bytes)
    pair = await lab.pair()
    seen, predicted, reading, bandwidths = [], [], [], []
    for number in range(lab.rounds + 1):
        bandwidth = await asyncio.to_thread(read_bandwidth, read)
        request = {**body(question(number), lab.options.tokens), "model": pair.bare.model}
        answer = await timed(lab.client, pair.bare.url, request)
        if number:  # the first one warms up
            machine = cpu(bandwidth, architecture.layers)
            step = decode_step_seconds(architecture, limits, machine, 1, CONTEXT_TOKENS)
            seen.append(answer.itl_seconds * 1000)
            predicted.append(step * 1000)
            reading.append((step - machine.step_seconds) * 1000)
            bandwidths.append(bandwidth / 1e9)
    target = Target(low=1 / FACTOR, high=FACTOR)
    return [
        ratio("a token, measured to predicted", "ms", ("bare vLLM", seen), ("predicted", predicted), target),
        value("of the prediction, reading the weights", "ms", reading),
        value("reading memory", "GB/s", bandwidths),
    ]  # fmt: skip


def cpu(bandwidth: float, layers: int) -> Hardware:
    """This CPU by its measured bandwidth; one request at a time never waits for its arithmetic."""
    return Hardware(
        "this CPU",
        memory_bytes=0,
        bandwidth=bandwidth,
        flops=float("inf"),
        bandwidth_share=1.0,
        flops_share=1.0,
        step_seconds=layers * CPU_LAYER_SECONDS,
        block_tokens=CPU_BLOCK_TOKENS,
    )


def read_bandwidth(count: int) -> float:
    """Bytes a second with which all cores read `count` bytes over and over, as decoding reads its weights.

    As many bytes as the weights are, so that the caches help both alike.
    """
    words = np.ones(count // 8, dtype=np.int64)
    shares = np.array_split(words, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            list(pool.map(np.max, shares))
            times.append(time.perf_counter() - start)
    return words.nbytes / median(times)

"""How long the first request of a new container waits, by the steps that the server itself measures. Pure.

Steps that were not computed are taken from others' logs or assumed, and say so; a deployed server's own start
times are better.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.capacity.load import Engine, Workload, alone

#: Modal has the image near, and a container is up in seconds. Assumed.
CONTAINER_SECONDS = 2.0
#: Python, torch and vLLM, and its second process: what 59 s in all leave beside the engine's 34 (vLLM issue 20264).
IMPORTS_SECONDS = 25.0
#: What a Volume gives to one reader, in bytes a second. Assumed.
VOLUME_BANDWIDTH = 10**9
#: Profiling, compiled kernels out of vLLM's cache, CUDA graphs: vLLM issue 20264.
ENGINE_SECONDS = 34.0
#: More of it where the cache is empty, once after each change of model, GPU or vLLM: vLLM pull 11005.
COMPILE_SECONDS = 25.0
#: Chroma 1.5 s, the embedder and a copy of the index; runs while the engine loads.
INDEX_SECONDS = 5.0
#: How long the request is that warms an engine up (`server/engines.py`), in tokens.
WARM_UP = Workload(prompt_tokens=400, output_tokens=2)


def cold_start(engine: Engine, work: Workload) -> Mapping[str, float]:
    """Seconds of each step, and under `total` of all; `index` runs beside `engine` and is not added."""
    weights = engine.architecture.weights.bytes(engine.limits.dtype_bytes)
    steps = {
        "container": CONTAINER_SECONDS,
        "imports": IMPORTS_SECONDS,
        "weights": weights / VOLUME_BANDWIDTH,
        "engine": ENGINE_SECONDS,
        "index": INDEX_SECONDS,
        "warm-up": alone(engine, WARM_UP).answer_seconds,
        "first token": alone(engine, work).ttft_seconds,
    }
    total = sum(steps.values()) - min(steps["index"], steps["engine"])
    return {**steps, "total": total, "total, nothing compiled yet": total + COMPILE_SECONDS}

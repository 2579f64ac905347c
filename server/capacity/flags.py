"""The few of vLLM's flags that decide how much memory it takes, read from a command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.capacity.architecture import Architecture, CapacityError

#: vLLM 0.32, `CacheConfig.gpu_memory_utilization`.
MEMORY_SHARE = 0.92
#: vLLM 0.32, `EngineArgs.get_batch_defaults`: its server on GPUs below 70 GiB, and on larger ones but the A100.
MAX_NUM_SEQS, LARGE_MAX_NUM_SEQS = 256, 1024
MAX_BATCHED_TOKENS, LARGE_MAX_BATCHED_TOKENS = 2048, 8192
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
DTYPE_BYTES = {"float32": 4, "float": 4}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How an engine is set up: tokens, requests, and the share of memory or the bytes of its KV cache."""

    max_model_len: int
    max_num_seqs: int = MAX_NUM_SEQS
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    memory_share: float = MEMORY_SHARE
    kv_cache_bytes: int | None = None
    block_tokens: int = 16
    dtype_bytes: int = 2
    kv_dtype_bytes: int = 2


def limits_of(
    args: Sequence[str], architecture: Architecture, block_tokens: int = 16, *, large: bool = False
) -> EngineLimits:
    """The limits that `vllm serve` flags set, vLLM's defaults for the rest.

    `large` is a GPU of 70 GiB or more that is no A100. Raises CapacityError for a number that is none, and for flags
    whose effect on memory is not known here: several GPUs, and weights that vLLM quantises while it loads them.
    """
    for name in ("tensor-parallel-size", "tp", "pipeline-parallel-size", "pp"):
        if (_number(args, name) or 1) > 1:
            raise CapacityError(f"--{name}: only one GPU can be planned for")
    quantization = flag_value(args, "quantization") or flag_value(args, "q")
    if quantization and architecture.quantization == "none":
        raise CapacityError(
            f"--quantization {quantization}: how small it makes these weights is not known; plan with a model that "
            "is stored quantised"
        )
    dtype_bytes = DTYPE_BYTES.get(flag_value(args, "dtype") or "", 2)
    kv_dtype = flag_value(args, "kv-cache-dtype") or "auto"
    longest = _number(args, "max-model-len") or architecture.max_positions
    seqs = _number(args, "max-num-seqs") or (LARGE_MAX_NUM_SEQS if large else MAX_NUM_SEQS)
    batched = _number(args, "max-num-batched-tokens")
    return EngineLimits(
        max_model_len=longest,
        max_num_seqs=seqs,
        max_batched_tokens=batched or (LARGE_MAX_BATCHED_TOKENS if large else MAX_BATCHED_TOKENS),
        memory_share=_share(args, "gpu-memory-utilization"),
        kv_cache_bytes=_number(args, "kv-cache-memory-bytes"),
        block_tokens=_number(args, "block-size") or block_tokens,
        dtype_bytes=dtype_bytes,
        kv_dtype_bytes=1 if kv_dtype.startswith(("fp8", "int8")) else dtype_bytes,
    )


def wants_fp8(args: Sequence[str]) -> bool:
    """Whether the flags ask for FP8 weights or an FP8 KV cache."""
    asked = (
        flag_value(args, "quantization"),
        flag_value(args, "q"),
        flag_value(args, "kv-cache-dtype"),
    )
    return any(value is not None and value.startswith("fp8") for value in asked)


def flag_value(args: Sequence[str], name: str) -> str | None:
    """The last value of a flag, as `--name value` or `--name=value`: the last one is vLLM's too."""
    found = None
    for number, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag.startswith("-") and flag.lstrip("-").replace("_", "-") == name:
            following = args[number + 1] if number + 1 < len(args) else None
            found = value if equals else following
    return found


def _number(args: Sequence[str], name: str) -> int | None:
    """A whole number as vLLM reads it: `8192`, `8k` (8,000) or `8K` (8,192). None: not given, or left to vLLM."""
    value = flag_value(args, name)
    if value is None or value in ("auto", "-1"):
        return None
    factor = SUFFIXES.get(value[-1:], 1)
    try:
        return int(float(value[:-1]) * factor) if factor > 1 else int(value)
    except ValueError:
        raise CapacityError(f"--{name}: {value!r} is no whole number") from None


def _share(args: Sequence[str], name: str) -> float:
    value = flag_value(args, name)
    if value is None:
        return MEMORY_SHARE
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise CapacityError(f"--{name}: must be above 0 and at most 1, not {value!r}")
    return share

"""What fits: weights, what a forward pass takes, and the room that is left for keys and values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.capacity.architecture import Architecture
from server.capacity.flags import EngineLimits

#: CUDA's context and the kernels' workspaces. Assumed; vLLM's log names 0.16 GiB beside PyTorch's on an H100
#: (kubernetes-sigs/gateway-api-inference-extension pull 550), and a context takes 0.3 to 0.5 GiB.
RUNTIME_BYTES = 6 * 2**27
#: Captured CUDA graphs: 0.48 GiB (vLLM issue 20264) and 0.33 GiB (vLLM pull 11005) in vLLM's log.
GRAPH_BYTES = 2**29


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where a machine's memory goes, in bytes, and how many tokens and requests the rest holds.

    `requests` is how many fit at their full length at once, at most `max_num_seqs`; `longest` is whether one
    request of `max_model_len` fits, without which vLLM refuses to start.
    """

    total_bytes: int
    usable_bytes: int
    weights_bytes: int
    reserve_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    requests: int
    longest: bool


def kv_tokens(kv_bytes: int, architecture: Architecture, limits: EngineLimits) -> int:
    """Tokens that a KV cache of so many bytes holds: whole blocks of `block_tokens` only, as vLLM hands them out."""
    block_bytes = limits.block_tokens * architecture.kv_bytes_per_token(limits.kv_dtype_bytes)
    return max(kv_bytes, 0) // block_bytes * limits.block_tokens


def reserve_bytes(architecture: Architecture, limits: EngineLimits) -> int:
    """What vLLM keeps free of weights and KV cache on a GPU.

    The peak of one forward pass of `max_batched_tokens` (the residual twice, and the gated MLP's three
    intermediates), the scores of `max_num_seqs` samples in float32 three times (logits, their softmax, sorted),
    the runtime and the graphs. Estimated by shape, not measured.
    """
    activations = (2 * architecture.hidden_size + 3 * architecture.intermediate_size) * (
        limits.max_batched_tokens * limits.dtype_bytes
    )
    scores = 3 * 4 * limits.max_num_seqs * architecture.vocabulary
    return activations + scores + RUNTIME_BYTES + GRAPH_BYTES


def plan_memory(
    architecture: Architecture, limits: EngineLimits, total_bytes: int, request_tokens: int
) -> MemoryPlan:
    """How `total_bytes` are shared out for requests of `request_tokens` (prompt and answer)."""
    weights = architecture.weights.bytes(limits.dtype_bytes)
    reserve = reserve_bytes(architecture, limits)
    usable = int(total_bytes * limits.memory_share)
    room = limits.kv_cache_bytes
    if room is None:
        room = max(usable - weights - reserve, 0)
    tokens = kv_tokens(room, architecture, limits)
    blocks = -(-request_tokens // limits.block_tokens)
    return MemoryPlan(
        total_bytes=total_bytes,
        usable_bytes=usable,
        weights_bytes=weights,
        reserve_bytes=reserve,
        kv_bytes=room,
        kv_bytes_per_token=architecture.kv_bytes_per_token(limits.kv_dtype_bytes),
        kv_tokens=tokens,
        requests=min(tokens // limits.block_tokens // blocks, limits.max_num_seqs),
        longest=tokens >= limits.max_model_len and weights + reserve + room <= total_bytes,
    )

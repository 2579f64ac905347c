"""How fast: the roofline of one decoding step and of one prompt. Pure.

A step takes as long as the slower of its two works, plus what every step costs:

    seconds = max(bytes read / (bandwidth x share), operations / (FLOP/s x share)) + step

**Decoding** `n` requests by one token reads the weights once and every request's keys and values, and multiplies
`n` tokens. **A prompt** of `t` tokens reads the weights once and multiplies `t` tokens; its attention costs
`t²` more. It may be read in several steps (`max_num_batched_tokens`).

The shares are what engines reach of the data sheet:

- of bandwidth, 0.60: 60 % on 2 H100 and 55 % on 4 A100 at one request (Databricks, "LLM Inference Performance
  Engineering: Best Practices", 2023);
- of operations, 0.55: a prompt of 1,024 tokens of a 7B model took 71.6 ms in float16 and 78.4 ms with 4-bit Marlin
  weights in groups of 128 on an A100 (HandH1998/QQQ issue 15), which is 60 % and 55 % of its 312 TFLOP/s;
- a step beside its kernels (scheduling, sampling, copies), 1 ms: assumed.

A CPU's bandwidth is measured, so its share is 1, and what each layer costs beside it is fitted (`python -m bench
--only plan`, `bench/scenarios/plan.py`); its operations are taken to cost nothing at one request.
"""

from __future__ import annotations

from server.capacity.architecture import Architecture
from server.capacity.flags import EngineLimits
from server.capacity.hardware import Hardware


def decode_step_seconds(
    architecture: Architecture,
    limits: EngineLimits,
    hardware: Hardware,
    requests: float,
    context_tokens: float,
) -> float:
    """Seconds of one token for each of `requests`, whose contexts are `context_tokens` long on average."""
    per_token = architecture.kv_bytes_per_token(limits.kv_dtype_bytes)
    read = architecture.bytes_read_a_step(limits.dtype_bytes)
    read += round(requests * context_tokens * per_token)
    multiplied = architecture.flops_per_token() + architecture.head_flops()
    # Each token's query meets every key, and its weights every value: 4 operations a head, element and token.
    attended = 4 * architecture.layers * architecture.heads * architecture.head_dim * context_tokens
    return _seconds(hardware, read, requests * (multiplied + attended)) + hardware.step_seconds


def prefill_seconds(
    architecture: Architecture, limits: EngineLimits, hardware: Hardware, prompt_tokens: int
) -> float:
    """Seconds from a prompt's start to its first token, with nothing else to do."""
    steps = -(-prompt_tokens // limits.max_batched_tokens)
    read = steps * architecture.bytes_read_a_step(limits.dtype_bytes)
    operations = prompt_tokens * architecture.flops_per_token() + architecture.head_flops()
    operations += architecture.attention_flops(prompt_tokens)
    return _seconds(hardware, read, operations) + steps * hardware.step_seconds


def _seconds(hardware: Hardware, read_bytes: float, operations: float) -> float:
    reading = read_bytes / (hardware.bandwidth * hardware.bandwidth_share)
    return max(reading, operations / (hardware.flops * hardware.flops_share))

"""One plan: a model with its flags, a GPU and a load, and everything that follows. Pure; all of it predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.capacity.architecture import Architecture
from server.capacity.coldstart import cold_start
from server.capacity.cost import Cost, cost_of
from server.capacity.flags import EngineLimits, limits_of, wants_fp8
from server.capacity.hardware import GIB, Hardware
from server.capacity.load import HEADROOM, Engine, Speed, Workload, alone, highest_qps, under_load
from server.capacity.memory import MemoryPlan, plan_memory

LARGE_BYTES = 70 * GIB


@dataclass(frozen=True, slots=True)
class Subject:
    """What is planned for: a name to show, the model, its shape, and the flags that vLLM gets."""

    name: str
    model: str
    architecture: Architecture
    vllm_args: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """Predictions for one model on one GPU. Without speed, cost and cold start where it does not fit."""

    subject: str
    model: str
    gpu: str
    workload: Workload
    max_model_len: int
    memory: MemoryPlan
    fits: bool
    problems: tuple[str, ...]
    alone: Speed | None = None
    loaded: Speed | None = None
    highest_qps: float = 0.0
    replicas: int = 0
    cold_start: Mapping[str, float] | None = None
    cost: Cost | None = None

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens a second of one replica at its highest rate."""
        return self.highest_qps * self.workload.output_tokens

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON, marked as a prediction."""
        return {
            "predicted": True,
            **asdict(self),
            "problems": list(self.problems),
            "tokens_per_second": self.tokens_per_second,
        }


def limits_on(subject: Subject, hardware: Hardware) -> EngineLimits:
    """The engine's limits on this hardware. Raises CapacityError for a flag's bad number."""
    large = hardware.memory_bytes >= LARGE_BYTES and not hardware.name.startswith("A100")
    return limits_of(subject.vllm_args, subject.architecture, hardware.block_tokens, large=large)


def plan_capacity(subject: Subject, hardware: Hardware, work: Workload) -> CapacityPlan:
    """Everything that follows from a model on a GPU with so much to do. Raises CapacityError for a bad flag."""
    limits = limits_on(subject, hardware)
    memory = plan_memory(subject.architecture, limits, hardware.memory_bytes, work.request_tokens)
    problems = (*_too_long(work, limits), *fit_problems(subject, hardware))
    fits = memory.longest and memory.requests > 0 and work.request_tokens <= limits.max_model_len
    bare = CapacityPlan(
        subject.name, subject.model, hardware.name, work, limits.max_model_len, memory, fits, problems
    )  # fmt: skip
    return _with_speed(bare, subject, hardware, limits) if fits else bare


def _with_speed(
    bare: CapacityPlan, subject: Subject, hardware: Hardware, limits: EngineLimits
) -> CapacityPlan:
    work = bare.workload
    engine = Engine(subject.architecture, limits, hardware, bare.memory.requests)
    most = highest_qps(engine, work)
    replicas = math.ceil(work.qps / (most * HEADROOM))
    return CapacityPlan(
        bare.subject, bare.model, bare.gpu, work, bare.max_model_len, bare.memory, True, bare.problems,
        alone=alone(engine, work),
        loaded=under_load(engine, work, work.qps / replicas),
        highest_qps=most,
        replicas=replicas,
        cold_start=cold_start(engine, work),
        cost=cost_of(hardware, replicas, work.min_containers, work.qps),
    )  # fmt: skip


def fit_problems(subject: Subject, hardware: Hardware) -> tuple[str, ...]:
    """Why a model will hardly fit, or not run well, on this hardware. Raises CapacityError for a bad flag."""
    limits = limits_on(subject, hardware)
    memory = plan_memory(subject.architecture, limits, hardware.memory_bytes, limits.max_model_len)
    found = [] if memory.longest else [too_large(memory, limits, hardware.name)]
    complaint = fp8_complaint(subject.vllm_args, subject.architecture, hardware)
    return tuple([*found, complaint] if complaint is not None else found)


def _too_long(work: Workload, limits: EngineLimits) -> tuple[str, ...]:
    if work.request_tokens <= limits.max_model_len:
        return ()
    asked, most = work.request_tokens, limits.max_model_len
    return (f"prompt and answer are {asked} tokens, and --max-model-len is {most}",)


def too_large(memory: MemoryPlan, limits: EngineLimits, where: str) -> str:
    """Why a model does not fit, in numbers, and what to lower."""
    longest = limits.max_model_len * memory.kv_bytes_per_token
    usable = f"the {_gib(memory.usable_bytes)} GiB that vLLM may take of {where}'s {_gib(memory.total_bytes)}"
    if limits.kv_cache_bytes is not None:
        needs = f"a KV cache of {_gib(limits.kv_cache_bytes)} GiB (--kv-cache-memory-bytes)"
        usable = f"{where}'s {_gib(memory.total_bytes)} GiB, or that cache is below {_gib(longest)} GiB for one request"
    else:
        needs = f"{_gib(longest)} GiB for one request of {limits.max_model_len} tokens"
    return (
        f"the model will hardly fit: {_gib(memory.weights_bytes)} GiB of weights, "
        f"{_gib(memory.reserve_bytes)} GiB for computing and {needs} are more than {usable}; "
        "lower --max-model-len, or take a smaller or quantised model"
    )


def fp8_complaint(
    args: Sequence[str], architecture: Architecture, hardware: Hardware
) -> str | None:
    """What FP8 means on a GPU that cannot multiply it; None where nothing is wrong."""
    asked = wants_fp8(args) or architecture.quantization == "fp8"
    if not asked or hardware.capability is None or hardware.has_fp8:
        return None
    sm = "".join(map(str, hardware.capability))
    return (
        f"{hardware.name} (sm{sm}) has no FP8 arithmetic, which begins with sm89: vLLM falls back to slower "
        "kernels or refuses; take an AWQ or GPTQ model and leave --kv-cache-dtype alone"
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"

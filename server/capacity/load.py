"""What callers see: times of one request alone and of many, and how many a second one engine can take. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.capacity.architecture import Architecture, CapacityError
from server.capacity.flags import EngineLimits
from server.capacity.hardware import Hardware
from server.capacity.roofline import decode_step_seconds, prefill_seconds

#: What plan, embed, search, fuse, pack and inject add before the engine: docs/performance.md, "grounded".
GROUNDING_SECONDS = 0.016
#: How much of what an engine could take at most a replica is given: arrivals come in bursts. Chosen, not measured.
HEADROOM = 0.8
#: How often the balance of arrivals and answers is stepped towards, and halvings of the highest rate.
ROUNDS, HALVINGS = 500, 30


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one size, `qps` of them a second; tokens of the prompt hold sources and question."""

    prompt_tokens: int = 1500
    output_tokens: int = 200
    qps: float = 1.0
    min_containers: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise CapacityError(f"--{name.replace('_', '-')}: must be at least 1")
        if not 0 < self.qps < 1e6:
            raise CapacityError("--qps: must be above 0 (and below a million)")
        if self.min_containers < 0:
            raise CapacityError("--min-containers: must be 0 or more")

    @property
    def request_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_context_tokens(self) -> float:
        """How long a context is on average while its answer is written."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds to the first token, of each further token, and of the whole answer; requests decoded at once."""

    ttft_seconds: float
    token_seconds: float
    answer_seconds: float
    requests: float


@dataclass(frozen=True, slots=True)
class Engine:
    """A model with its limits on a machine; `places` requests fit at once."""

    architecture: Architecture
    limits: EngineLimits
    hardware: Hardware
    places: int

    def step_seconds(self, requests: float, work: Workload) -> float:
        return decode_step_seconds(
            self.architecture, self.limits, self.hardware, requests, work.mean_context_tokens
        )

    def prefill_seconds(self, tokens: int) -> float:
        return prefill_seconds(self.architecture, self.limits, self.hardware, tokens)


def alone(engine: Engine, work: Workload) -> Speed:
    """One request at a time."""
    first = GROUNDING_SECONDS + engine.prefill_seconds(work.prompt_tokens)
    token = engine.step_seconds(1, work)
    return Speed(first, token, first + token * (work.output_tokens - 1), 1.0)


def under_load(engine: Engine, work: Workload, qps: float) -> Speed | None:
    """What requests see that arrive at random, `qps` a second; None: they arrive faster than they are answered.

    Prompts take the share `busy = qps x prefill` of the time, decoding has the rest: a token takes
    `step(n) / (1 - busy)`, and by Little's law `n = qps x tokens x token seconds` requests are decoded at once. A
    prompt waits for those before it, `busy / (2 (1 - busy))` prefills on average (M/D/1), and for half a step.
    """
    prefill = engine.prefill_seconds(work.prompt_tokens)
    busy = qps * prefill
    if busy >= 1 or engine.places < 1:
        return None
    requests = 0.0
    for _ in range(ROUNDS):
        token = engine.step_seconds(max(requests, 1.0), work) / (1 - busy)
        balanced = qps * (work.output_tokens - 1) * token
        if balanced > engine.places:
            return None
        if abs(balanced - requests) < 1e-6:
            break
        requests = balanced
    wait = prefill * busy / (2 * (1 - busy)) + min(requests, 1.0) * token * (1 - busy) / 2
    first = GROUNDING_SECONDS + wait + prefill
    return Speed(first, token, first + token * (work.output_tokens - 1), requests)


def highest_qps(engine: Engine, work: Workload) -> float:
    """The most requests a second that one engine keeps up with; 0 where not one fits."""
    low, high = 0.0, 1 / engine.prefill_seconds(work.prompt_tokens)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if under_load(engine, work, middle) else (low, middle)
    return low

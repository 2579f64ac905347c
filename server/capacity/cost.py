"""Dollars: what containers cost that are kept warm or at work, by Modal's prices. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.capacity.hardware import (
    CORE_DOLLARS_PER_SECOND,
    GIB_DOLLARS_PER_SECOND,
    PRICES_OF,
    Hardware,
)

#: What `modal_deploy.py` asks for beside the GPU.
CORES, MEMORY_GIB = 4, 16
#: 365 days / 12.
MONTH_SECONDS = 730 * 3600


@dataclass(frozen=True, slots=True)
class Cost:
    """In dollars, by the prices of `prices_of`; regions, non-preemptible containers and plan fees cost extra.

    `month_warm` is `min_containers` with nobody asking, `month_loaded` the replicas that the load needs all the
    time, or `min_containers` where these are more.
    """

    container_hour: float
    month_warm: float
    month_loaded: float
    thousand_answers: float
    prices_of: str = PRICES_OF


def container_dollars_per_second(hardware: Hardware) -> float:
    """A container's price while it is up, idle or not."""
    rest = CORES * CORE_DOLLARS_PER_SECOND + MEMORY_GIB * GIB_DOLLARS_PER_SECOND
    return hardware.dollars_per_second + rest


def cost_of(hardware: Hardware, replicas: int, min_containers: int, qps: float) -> Cost:
    """What `qps` requests a second cost on `replicas`."""
    second = container_dollars_per_second(hardware)
    up = max(replicas, min_containers)
    return Cost(
        container_hour=second * 3600,
        month_warm=second * MONTH_SECONDS * min_containers,
        month_loaded=second * MONTH_SECONDS * up,
        thousand_answers=second * up / qps * 1000,
    )

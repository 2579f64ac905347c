"""What the GPUs can do, by their makers' data sheets, and what Modal asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from server.capacity.architecture import CapacityError

GB, TB, TERA = 10**9, 10**12, 10**12
GIB = 2**30
#: The day on which the prices below stood on https://modal.com/pricing; they change without notice.
PRICES_OF = "2026-07-01"
#: Modal's prices of a physical core and of a GiB of memory, in dollars a second.
CORE_DOLLARS_PER_SECOND = 0.0000131
GIB_DOLLARS_PER_SECOND = 0.00000222


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator, or a CPU.

    `memory_bytes` is what CUDA reports, which is less than what is printed on the box. `bandwidth` is in bytes
    a second, `flops` dense bfloat16 (float16 on a T4) operations a second. The shares are how much of either a
    real engine reaches, and `step_seconds` what each step costs beside them; sources in `roofline`.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float
    capability: tuple[int, int] | None = None
    dollars_per_second: float = 0.0
    bandwidth_share: float = 0.60
    flops_share: float = 0.55
    step_seconds: float = 0.001
    block_tokens: int = 16

    @property
    def has_fp8(self) -> bool:
        """Whether its tensor cores multiply FP8: Ada (8.9) and later."""
        return self.capability is not None and self.capability >= (8, 9)


#: Bandwidth and operations: NVIDIA's data sheets of T4, L4, A10G (AWS G5), A100, L40S, H100 SXM; without sparsity.
#: Modal's "A10" may be an A10, which has 125 TFLOP/s; the A10G's 70 are the safer number.
#: Memory: what PyTorch names as total capacity on each. Prices: Modal, on the day above.
GPUS = (
    Hardware("T4", round(14.56 * GIB), 320 * GB, 65 * TERA, (7, 5), 0.000164),
    Hardware("L4", round(22.03 * GIB), 300 * GB, 121 * TERA, (8, 9), 0.000222),
    Hardware("A10G", round(21.99 * GIB), 600 * GB, 70 * TERA, (8, 6), 0.000306),
    Hardware("L40S", round(44.39 * GIB), 864 * GB, 362 * TERA, (8, 9), 0.000542),
    Hardware("A100-40GB", round(39.39 * GIB), 1555 * GB, 312 * TERA, (8, 0), 0.000583),
    Hardware("A100-80GB", round(79.15 * GIB), 2039 * GB, 312 * TERA, (8, 0), 0.000694),
    Hardware("H100", round(79.19 * GIB), 3350 * GB, 989 * TERA, (9, 0), 0.001097),
)
#: Modal's other names for the same.
ALIASES = {"A10": "A10G", "A100": "A100-40GB"}


def gpu(name: str) -> Hardware:
    """The GPU that Modal calls `name`, in any case. Raises CapacityError naming those that are known."""
    wanted = ALIASES.get(name.upper(), name.upper())
    for one in GPUS:
        if one.name.upper() == wanted:
            return one
    raise CapacityError(
        f"no such GPU: {name!r}; there are {', '.join(one.name for one in GPUS)} (one GPU a container)"
    )

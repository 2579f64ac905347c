"""The machine that vLLM will run on, asked before it starts: does the model fit?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from server.capacity.architecture import Architecture, CapacityError
from server.capacity.folder import read_folder
from server.capacity.hardware import Hardware
from server.capacity.planner import Subject, fit_problems
from server.profiles import profile_of

log = logging.getLogger(__name__)
CPU_BLOCK_TOKENS = 128


def fit_warnings(name: str, model: str, args: Sequence[str]) -> tuple[str, ...]:
    """Why a model will hardly fit or run well here, one sentence each; nothing where that is not known.

    `model` is the folder or hub name that vLLM gets, `name` what the settings call it. A hub model that is no
    profile's is unknown until vLLM has fetched it. Never raises: vLLM has the last word. Imports vLLM, whose
    environment must be set by then.
    """
    try:
        architecture = _shape(model)
        if architecture is None:
            return ()
        return fit_problems(Subject(name, model, architecture, tuple(args)), this_machine())
    except CapacityError as error:
        log.debug("not checked whether the model fits: %s", error)
        return ()
    except (
        Exception
    ) as error:  # a driver's own errors have many types, and none of them may stop a start
        log.info("not checked whether the model fits: %s", error)
        return ()


def this_machine() -> Hardware:
    """The first GPU, or the CPU, with its memory; speeds are not asked for. Raises vLLM's and the driver's errors.

    vLLM's own platform asks the driver through NVML, which opens no context on the GPU.
    """
    from vllm.platforms import current_platform

    total = int(current_platform.get_device_total_memory())
    if current_platform.is_cpu():
        return Hardware("this CPU", total, 0.0, 0.0, block_tokens=CPU_BLOCK_TOKENS)
    found = current_platform.get_device_capability()
    capability = None if found is None else (found.major, found.minor)
    return Hardware(current_platform.get_device_name(), total, 0.0, 0.0, capability)


def _shape(model: str) -> Architecture | None:
    if Path(model).is_dir():
        return read_folder(Path(model))
    profile = profile_of(model)
    return None if profile is None else profile.architecture

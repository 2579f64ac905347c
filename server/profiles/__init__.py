"""Profiles: models with settings that fit them, `groundwire serve --profile NAME`. One TOML file each, beside this one.

A file has the keys `summary`, `model`, `revision` (a commit of the model's repository; left out where none is
known), a table `[settings]` of Groundwire's own settings, and a table `[architecture]` of facts for `groundwire plan`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.capacity.architecture import Architecture

FOLDER = Path(__file__).parent
#: The order of the table: today's choices for 24 GB, then the steps of the first plan, then the one for a CPU.
NAMES = (
    "qwen3-4b",
    "qwen3-4b-bf16",
    "qwen3-8b",
    "mistral-7b",
    "phi-3-mini",
    "tinyllama",
    "smollm2",
)


class UnknownProfile(Exception):
    """There is no profile of that name; the message lists those that there are."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One file, read. `settings` are without `model` and `vllm_args`, which stand beside them."""

    name: str
    summary: str
    model: str
    revision: str | None
    vllm_args: Sequence[str]
    settings: Mapping[str, Any]
    architecture: Architecture

    def flags_for(self, model: str) -> list[str]:
        """vLLM's flags with `model`: the revision is that of the profile's own model, and of no other."""
        if self.revision is None or model != self.model:
            return list(self.vllm_args)
        return ["--revision", self.revision, *self.vllm_args]


def load_profile(name: str) -> Profile:
    """The profile `name`. Raises UnknownProfile."""
    if name not in NAMES:
        raise UnknownProfile(f"no such profile: {name!r}; there are {', '.join(NAMES)}")
    with open(FOLDER / f"{name}.toml", "rb") as file:
        read = tomllib.load(file)
    settings = dict(read["settings"])
    return Profile(
        name=name,
        summary=read["summary"],
        model=read["model"],
        revision=read.get("revision"),
        vllm_args=tuple(settings.pop("vllm_args", ())),
        settings=settings,
        architecture=Architecture(**read["architecture"]),
    )


def profile_of(model: str) -> Profile | None:
    """The first profile for a model of this name, whose shape is then known."""
    return next((one for one in map(load_profile, NAMES) if one.model == model), None)

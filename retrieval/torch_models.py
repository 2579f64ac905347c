"""What the embedder and the reranker share of torch: a hub that is asked last, and threads that are bounded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: What sentence-transformers raises for a model that it cannot load.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError)


def load_local_first(make: Callable[..., Any], model: str, device: str) -> Any:
    """`make`'s model from a folder or the hub's local cache, and only then from the hub. Raises LOAD_ERRORS."""
    try:
        return make(model, device=device, local_files_only=True)
    except OSError:
        return make(model, device=device)


def first_line(error: BaseException) -> str:
    """Why, in one line: these libraries explain over pages."""
    words = str(error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def limit_threads(worker: ThreadPoolExecutor, threads: int) -> None:
    """Bound torch on the worker's one thread; every other thread keeps the process's number."""
    import torch

    process_threads = torch.get_num_threads()
    worker.submit(torch.set_num_threads, threads).result()
    torch.set_num_threads(process_threads)

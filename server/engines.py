"""The engines that the settings name. The one in this process begins to load long before it is waited for."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from server.engine.background import Background, Check, in_background
from server.engine.base import Engine, EngineRejected, EngineUnsupported, Sleeper, sleeper
from server.settings import (
    BUNDLED_CHAT_MODEL,
    Settings,
    UpstreamSettings,
    child_environment,
    vllm_log_level,
)
from server.start import StartTrace
from server.telemetry.logs import config_of_vllm

if TYPE_CHECKING:
    from server.engine.vllm_engine import LoadedVllm

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
#: All engines by name, the one in this process first; returns when they can answer.
Ready = Callable[[], Awaitable[Mapping[str, Engine]]]


@asynccontextmanager
async def begin_engines(
    settings: Settings, progress: Progress, start: StartTrace, engine: Engine | None = None
) -> AsyncIterator[Ready]:
    """Open the upstreams, begin to load the engine of this process, and yield what waits for it.

    An `engine` that is there already takes that one's place, and stays open when the block ends.
    The upstreams come first, so that a mistake in one shows before the minute that vLLM takes. When the block
    ends, a load that nobody waited for is given up. Raises whatever an engine raises.
    """
    async with AsyncExitStack() as stack:
        upstreams = {
            one.name: await stack.enter_async_context(_open_upstream(one, progress))
            for one in settings.engines
        }
        own: AbstractAsyncContextManager[Engine] | None
        if engine is None:
            own = await stack.enter_async_context(_begin_own(settings, progress, start))
        else:
            own = nullcontext(engine)

        async def ready() -> Mapping[str, Engine]:
            if own is None:
                return upstreams
            return {settings.engine: await stack.enter_async_context(own), **upstreams}

        yield ready


@asynccontextmanager
async def open_asleep(
    settings: Settings, progress: Progress, start: StartTrace
) -> AsyncIterator[Sleeper]:
    """The engine of this process, loaded and run warm, then put to sleep: what a memory snapshot is made of.

    Raises EngineUnsupported where it cannot sleep, or where all engines are elsewhere, and whatever it raises.
    """
    flags = [*settings.vllm_args, "--enable-sleep-mode"] if settings.engine == "vllm" else []
    settings = settings.model_copy(update={"vllm_args": flags})
    async with _begin_own(settings, progress, start) as own:
        if own is None:
            raise EngineUnsupported("no engine runs in this process")
        async with own as engine:
            asleep = sleeper(engine)
            await asleep.sleep()
            yield asleep


@asynccontextmanager
async def _begin_own(
    settings: Settings, progress: Progress, start: StartTrace
) -> AsyncIterator[AbstractAsyncContextManager[Engine] | None]:
    """What opens the engine of this process, which loads meanwhile; None where all engines are elsewhere."""
    if settings.engine == "vllm":
        async with _begin_vllm(settings, progress, start) as loading:
            yield _open_vllm(loading, progress, start)
    else:
        yield _open_scripted(settings) if settings.engine == "scripted" else None


@asynccontextmanager
async def _open_upstream(settings: UpstreamSettings, progress: Progress) -> AsyncIterator[Engine]:
    from server.engine.upstream import UpstreamOptions, open_upstream

    progress(f"using the engine {settings.name} at {settings.url}")
    fields = settings.model_dump(exclude={"api_key"})
    key = settings.api_key.get_secret_value() if settings.api_key else None
    async with open_upstream(UpstreamOptions(**fields, api_key=key)) as engine:
        yield engine


@asynccontextmanager
async def _open_scripted(settings: Settings) -> AsyncIterator[Engine]:
    from server.engine.scripted import Script, ScriptedEngine

    yield ScriptedEngine(Script(**settings.scripted))


@asynccontextmanager
async def _begin_vllm(
    settings: Settings, progress: Progress, start: StartTrace
) -> AsyncIterator[Background[LoadedVllm]]:
    """vLLM while it loads in a thread, from where another process loads the model and this one has time.

    Until then its imports keep this process busy, and other imports beside them would only slow the way to
    that process; besides, two threads that import the same libraries can meet halves of modules.
    """
    others = multiprocessing.active_children()  # another engine's, in a process that has had one

    def processes() -> list[BaseProcess]:
        """This vLLM's, the only ones that are started by `multiprocessing` meanwhile."""
        return [process for process in multiprocessing.active_children() if process not in others]

    def end_processes() -> None:
        for process in processes():  # what waits for them fails
            process.terminate()

    work = partial(_load, settings, progress, start)
    async with in_background(
        work, stop=end_processes, discard=lambda loaded: loaded.close()
    ) as loading:
        await loading.reaches(lambda: bool(processes()))
        yield loading


def _load(settings: Settings, progress: Progress, start: StartTrace, check: Check) -> LoadedVllm:
    """From the settings to a loaded model; blocks."""
    from server.engine.device import fit_warnings
    from server.engine.vllm_engine import VllmOptions, import_vllm, load_vllm

    model, args = settings.model, list(settings.vllm_args)
    if model == BUNDLED_CHAT_MODEL:
        from server.bundled import chat_model_flags, prepare_chat_model

        with start.step("model_files"):
            model = str(prepare_chat_model(settings.models_dir, progress))
        args = [*chat_model_flags(), *args]
    if (url := settings.traces_url) is not None:
        args = ["--otlp-traces-endpoint", url, *args]
    progress(f"starting vLLM with {settings.model} (a minute or two on a CPU)")
    environment = {**child_environment(settings), **_logging_of_vllm(settings)}
    options = VllmOptions(
        model=model,
        served_name=settings.model,
        args=args,
        tool_call_parser=settings.tool_call_parser,
        environment=environment,
        media_domains=settings.allowed_media_domains,
    )
    with start.step("engine_imports"):
        parsed = import_vllm(options, check)
        for warning in fit_warnings(settings.model, model, args):
            log.warning("%s", warning)
    check()
    with start.step("engine"):
        return load_vllm(parsed)


def _logging_of_vllm(settings: Settings) -> dict[str, str]:
    """The variable that makes vLLM log as we do, where that is not its own way; its processes read a file."""
    if settings.log_format == "text":
        return {}
    level = vllm_log_level(settings)
    settings.make_data_dir()  # the storage makes it too, which may be later
    path = settings.data_dir.resolve() / "vllm-logging.json"
    path.write_text(json.dumps(config_of_vllm(level, content=settings.log_content)))
    return {"VLLM_LOGGING_CONFIG_PATH": str(path)}


@asynccontextmanager
async def _open_vllm(
    loading: Background[LoadedVllm], progress: Progress, start: StartTrace
) -> AsyncIterator[Engine]:
    from server.engine.vllm_engine import import_app, open_vllm

    await asyncio.to_thread(import_app)  # this process would only wait
    loaded = await loading.result()
    began = start.elapsed_seconds()
    async with open_vllm(loaded) as engine:
        start.record("engine_app", since=began)
        progress("warming up")
        with start.step("warm_up"):
            await _warm_up(engine, start)
        yield engine


async def _warm_up(engine: Engine, start: StartTrace) -> None:
    """Run a request about as long as a grounded one: the first of that size is slow, and should be nobody's."""
    body = {
        "model": (await engine.models())[0].id,
        "messages": [{"role": "user", "content": "Warm up. " * 100}],
        "max_tokens": 2,
        "stream": True,
    }
    began = start.elapsed_seconds()
    try:
        events = await engine.stream(body, "chatcmpl-warm-up")
    except EngineRejected as error:  # a model without a chat template, or with a very short context
        log.info("not warmed up: %s", error)
        return
    try:
        await anext(events)
        start.record("first_token", since=began)
        async for _ in events:
            pass
    finally:
        await events.aclose()

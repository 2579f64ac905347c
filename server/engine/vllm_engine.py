"""The product's engine: vLLM's `AsyncLLM` in this process, spoken to through vLLM's own serving layer.

Only the entry points that stayed stable over vLLM's releases are used (`AsyncLLM`, `build_app`,
`init_app_state` and the route functions), so that tools, structured outputs, logprobs, `n`, stop, seed and
usage are vLLM's own. The one file that imports vLLM.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message

from server.engine.base import (
    NO_TRACE,
    Body,
    Engine,
    EngineDead,
    EngineError,
    EngineOverloaded,
    EngineRejected,
    EngineTimings,
    EngineUnsupported,
    Events,
    ModelCard,
    TraceHeaders,
    failure,
    is_chat,
    refuse_uncounted,
)
from server.wire.common import first_complaint

#: Finished requests whose timings nobody collected (aborted ones) are kept up to this many.
KEPT_TIMINGS = 1024
#: What `/tokenize` reads of a request; the rest of the body does not change the prompt.
TOKENIZE_FIELDS = (
    "model",
    "prompt",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


#: vLLM's flags about listening: we listen, so they would do nothing. What to use in their place.
OUR_FLAGS = {
    "api-key": "GROUNDWIRE_API_KEYS",
    "ssl-keyfile": "a proxy that ends TLS",
    "ssl-certfile": "a proxy that ends TLS",
    "ssl-ca-certs": "a proxy that ends TLS",
    "root-path": "--public-url",
    "allowed-origins": "GROUNDWIRE_ALLOWED_ORIGINS",
    "allowed-media-domains": "GROUNDWIRE_ALLOWED_MEDIA_DOMAINS",
    "uds": "--host and --port",
    "middleware": "a proxy",
}
#: What loading a model imports, in pieces. vLLM itself comes first: it sets variables that torch reads when imported.
ENGINE_MODULES = (
    "vllm",
    "transformers",
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.async_llm",
)
#: What serving it imports beyond that.
APP_MODULES = (
    "vllm.entrypoints.launchers.api_server.app_state",
    "vllm.entrypoints.launchers.app",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.serve.tokenize.protocol",
)
#: Turns of the event loop in which vLLM has validated a request: it does so before it first waits.
VALIDATION_TURNS = 3
#: The same for a list of prompts, each of which it gives a task of its own.
SEVERAL_VALIDATION_TURNS = 6
ERROR_EVENT = b'data: {"error"'
#: vLLM reads an empty list as "every domain"; this name can never exist (RFC 6761).
NO_DOMAIN = "none.invalid"


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What to serve: `served_name` is the model's public name, `args` are further `vllm serve` flags."""

    model: str
    served_name: str
    args: Sequence[str] = ()
    tool_call_parser: str | None = None
    environment: Mapping[str, str] | None = None
    media_domains: Sequence[str] = ()


def vllm_command_line(options: VllmOptions) -> list[str]:
    """Our defaults first, the user's flags last, so that the user's win."""
    line = ["--model", options.model, "--served-model-name", options.served_name]
    line += ["--enable-prompt-tokens-details", "--disable-fastapi-docs"]
    line += ["--allowed-media-domains", *(options.media_domains or [NO_DOMAIN])]
    if options.tool_call_parser:
        line += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_call_parser]
    return [*line, *options.args]


def parse_vllm_args(options: VllmOptions) -> Any:
    """vLLM's own namespace for these options.

    Raises EngineError for a flag that would do nothing here; vLLM's parser ends the process with its usage
    message on a flag that it does not know.
    """
    _prepare(options)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="groundwire serve"))
    args = parser.parse_args(vllm_command_line(options))
    validate_parsed_serve_args(args)
    return args


def _prepare(options: VllmOptions) -> None:
    """Check the flags and set the environment that vLLM reads when it is imported. Raises EngineError."""
    for arg in options.args:
        name = arg.lstrip("-").partition("=")[0].replace("_", "-")
        if arg.startswith("--") and name in OUR_FLAGS:
            raise EngineError(f"--{name} is vLLM's and does nothing here; use {OUR_FLAGS[name]}")
    for name, value in (options.environment or {}).items():
        os.environ.setdefault(name, value)
    # Workers are spawned, never forked: this process has threads by then.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


@dataclass(frozen=True, slots=True)
class LoadedVllm:
    """A vLLM that has loaded its model in a process of its own, and its arguments."""

    client: Any
    args: Any

    def close(self) -> None:
        """Stop the engine and its processes."""
        self.client.shutdown(timeout=self.client.vllm_config.shutdown_timeout)


def import_vllm(options: VllmOptions, check: Callable[[], None]) -> Any:
    """Import what loading takes, and return vLLM's own namespace for these options; blocks for many seconds.

    `check` is called between pieces and raises to end the work. Raises as `parse_vllm_args`.
    """
    _prepare(options)
    for module in ENGINE_MODULES:
        check()
        import_module(module)
    return parse_vllm_args(options)


def load_vllm(args: Any) -> LoadedVllm:
    """Load the model; blocks for as long as that takes, in any thread. Raises whatever vLLM raises.

    As vLLM's `build_async_engine_client` does it, which wants an event loop to block.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    class Client(AsyncLLM):  # type: ignore[misc]
        def __del__(self) -> None:
            """Nothing: `LoadedVllm.close` has shut it down, and a second time at the process's end would fail aloud."""

    engine_args = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, engine_args)
    usage = UsageContext.OPENAI_API_SERVER
    client = Client.from_vllm_config(
        engine_args.create_engine_config(usage_context=usage),
        usage_context=usage,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return LoadedVllm(client, args)


def import_app() -> None:
    """Import what `open_vllm` needs; blocks for seconds. Not while `import_vllm` runs in another thread."""
    for module in APP_MODULES:
        import_module(module)


@asynccontextmanager
async def open_vllm(loaded: LoadedVllm) -> AsyncIterator[VllmEngine]:
    """Yield the engine; leaving stops it and its worker processes."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    client, args = loaded.client, loaded.args
    try:
        await client.reset_mm_cache()  # what vLLM made up to measure itself need not stay in memory
        tasks = await client.get_supported_tasks()
        with _log_levels_kept():
            app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        # vLLM's error handlers set `should_exit` on it when the engine dies; our own watch ends the process.
        app.state.server = SimpleNamespace(should_exit=False)
        async with app.router.lifespan_context(app):
            yield VllmEngine(client, app)
    finally:
        loaded.close()


@contextmanager
def _log_levels_kept() -> Iterator[None]:
    """A library that vLLM's app imports (SageMaker's) silences the root logger and its handlers below ERROR."""
    root = logging.getLogger()
    level, handlers = root.level, [(handler, handler.level) for handler in root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        for handler, own in handlers:
            handler.setLevel(own)


class VllmEngine:
    """One running vLLM, as an `Engine`."""

    def __init__(self, client: Any, app: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.api_router import create_completion
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.serve.tokenize.protocol import (
            TokenizeChatRequest,
            TokenizeCompletionRequest,
        )

        self._client = client
        self._app = app
        self._chat = _Kind(create_chat_completion, ChatCompletionRequest, TokenizeChatRequest)
        self._text = _Kind(create_completion, CompletionRequest, TokenizeCompletionRequest)
        self._tokenizer = client.renderer.get_tokenizer()
        # Without, vLLM would warn of each trace that it is told of and does not send.
        self._is_tracing = client.observability_config.otlp_traces_endpoint is not None
        self._timings = _TimingsLog()
        if client.logger_manager is not None:
            client.logger_manager.stat_loggers.append(self._timings)

    @property
    def asgi_app(self) -> ASGIApp:
        app: ASGIApp = self._app
        return app

    @property
    def max_model_len(self) -> int:
        return int(self._client.model_config.max_model_len)

    @property
    def special_tokens(self) -> frozenset[str]:
        tokens = {*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}
        return frozenset(token for token in tokens if token.strip())

    async def models(self) -> Sequence[ModelCard]:
        listed = await self._app.state.openai_serving_models.show_available_models()
        return [
            ModelCard(
                card.id, card.created, card.owned_by, card.max_model_len, card.root, card.parent
            )
            for card in listed.data
        ]

    def answering(self, model: str) -> Engine:  # noqa: ARG002 - it answers for all of them
        return self

    async def complete(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> bytes:
        response = await self._route(body, request_id, trace_headers)
        return bytes(response.body)

    async def stream(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> Events:
        response = await self._route(body, request_id, trace_headers)
        if not isinstance(response, StreamingResponse):
            raise EngineError("vLLM answered a streamed request with a whole body")
        events = _Begun(response.body_iterator)
        try:
            several = isinstance(body.get("prompt"), list)
            await events.validated(SEVERAL_VALIDATION_TURNS if several else VALIDATION_TURNS)
        except BaseException:
            await events.aclose()
            raise
        return events

    async def count_tokens(self, body: Body) -> int:
        self._refuse_uncountable(body)
        fields = {name: body[name] for name in TOKENIZE_FIELDS if body.get(name) is not None}
        try:
            request = self._kind(body).tokenize_request.model_validate(fields)
            answer = await self._app.state.serving_tokenization.create_tokenize(
                request, _raw_request(self._app, "tokenize", asyncio.Event())
            )
        except (
            Exception
        ) as error:  # vLLM's validation raises many types; each has its one translation
            raise _translated(error) from error
        if (refusal := getattr(answer, "error", None)) is not None:
            raise _rejected(refusal.model_dump())
        return int(answer.count)

    def _refuse_uncountable(self, body: Body) -> None:
        """Raises EngineRejected for what cannot fit, before it costs seconds to tokenize, or be counted.

        The bound is the one that vLLM's generating routes refuse by; its tokenize route has none.
        """
        refuse_uncounted(body)
        characters = sum(len(text) for text in _texts(body))
        if characters > self.max_model_len * self._tokenizer.max_chars_per_token:
            raise EngineRejected("the prompt is too long", code="context_length_exceeded")

    def count_text(self, texts: Sequence[str]) -> list[int]:
        return [len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def timings(self, request_id: str) -> EngineTimings | None:
        return self._timings.take(request_id)

    def check_health(self) -> None:
        if self._client.errored:
            raise EngineDead("the vLLM engine has died; see its log above, then restart the server")

    async def sleep(self) -> None:
        self._refuse_to_sleep()
        await self._client.sleep(level=1)

    async def wake(self) -> None:
        self._refuse_to_sleep()
        await self._client.wake_up()

    def _refuse_to_sleep(self) -> None:
        """Raises EngineUnsupported where vLLM would do nothing, or half of it."""
        if not self._client.model_config.enable_sleep_mode:
            raise EngineUnsupported(
                "vLLM cannot give its GPU's memory up: start it with --enable-sleep-mode (CPUs have no such mode)"
            )

    def _kind(self, body: Body) -> _Kind:
        return self._chat if is_chat(body) else self._text

    async def _route(self, body: Body, request_id: str, trace_headers: TraceHeaders) -> Response:
        """Call vLLM's route function; when we are cancelled, it hears a client going away."""
        gone = asyncio.Event()
        # vLLM derives the completion's id from this header, so the header carries the id we minted.
        headers = trace_headers if self._is_tracing else NO_TRACE
        raw = _raw_request(self._app, request_id.partition("-")[2], gone, headers)
        kind = self._kind(body)
        try:
            request = kind.request.model_validate(body)
            call = asyncio.ensure_future(kind.create(request, raw))
            try:
                response = await asyncio.shield(call)
            except asyncio.CancelledError:
                gone.set()
                await asyncio.wait([call])
                raise
        except Exception as error:  # as above: every refusal of vLLM passes through one translation
            raise _translated(error) from error
        if response is None:
            raise EngineError("vLLM dropped the request")
        if response.status_code >= 400:
            raise _rejected(orjson.loads(bytes(response.body)).get("error", {}))
        return response  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Kind:
    """vLLM's route function for one kind of request, and the classes that it and the tokenizer read."""

    create: Any
    request: Any
    tokenize_request: Any


def _texts(body: Body) -> Iterator[str]:
    if isinstance(body.get("prompt"), str):
        yield body["prompt"]
    for message in body.get("messages", ()):
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def _raw_request(
    app: Any, request_id: str, gone: asyncio.Event, trace_headers: TraceHeaders = NO_TRACE
) -> Request:
    """The HTTP request that vLLM's functions ask for: no other header of the client's travels into the engine."""

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode()),
            *((name.encode(), value.encode()) for name, value in trace_headers.items()),
        ],
        "app": app,
        "state": {},
    }
    return Request(scope, receive)


class _Begun:
    """vLLM's events as bytes, the first one already asked for.

    vLLM checks part of a request (its JSON schema, say) only when its generator first runs. Closing closes
    that generator, which aborts the request.
    """

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._first: asyncio.Future[Any] | None = asyncio.ensure_future(anext(chunks, b""))

    async def validated(self, turns: int) -> None:
        """Return when the request is with the engine. Raises EngineError where it was refused."""
        assert self._first is not None
        for _ in range(turns):
            await asyncio.sleep(0)
            if self._first.done():
                break
        else:
            return
        try:
            event = _bytes(self._first.result())
        except Exception as error:
            raise _translated(error) from error
        if event.startswith(ERROR_EVENT):
            raise _rejected(orjson.loads(event.removeprefix(b"data: "))["error"])

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        chunk = await (anext(self._chunks, b"") if first is None else first)
        if not chunk:
            raise StopAsyncIteration
        return _bytes(chunk)

    async def aclose(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await self._chunks.aclose()


def _bytes(chunk: str | bytes) -> bytes:
    return chunk.encode() if isinstance(chunk, str) else chunk


def _translated(error: Exception) -> Exception:
    """vLLM's exception as one of ours; an unexpected one is returned as it is, to be logged as a fault."""
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineError):
        return error
    if isinstance(error, ValidationError):
        message, field = first_complaint(error)
        return EngineRejected(message, param=field)
    if isinstance(error, EngineDeadError):
        return EngineDead("the vLLM engine has died")
    answer = create_error_response(error).error
    if answer.code >= 500 and answer.code not in (501, 503):
        return error
    return _rejected(answer.model_dump())


def _rejected(error: Mapping[str, Any]) -> EngineError:
    message, status = str(error.get("message", "")), int(error.get("code") or 400)
    if status == 503:
        return EngineOverloaded(message)
    if status >= 500 and status != 501:
        return failure("vLLM", message)
    # OpenAI's clients look for this code; vLLM only says it in words.
    too_long = (
        "maximum context length" in message or "longer than the maximum model length" in message
    )
    return EngineRejected(
        message,
        status=400 if status == 422 else status,
        param=error.get("param"),
        code="context_length_exceeded" if too_long else None,
    )


class _TimingsLog:
    """A vLLM stat logger that keeps each finished request's timings until they are asked for.

    Appended to vLLM's list of loggers by duck type: its plugin entry point would need a global to reach us.
    """

    def __init__(self) -> None:
        self._finished: OrderedDict[str, dict[str, EngineTimings]] = OrderedDict()

    def record(
        self,
        scheduler_stats: Any = None,  # noqa: ARG002 - vLLM's signature
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,  # noqa: ARG002
        engine_idx: int = 0,  # noqa: ARG002
        **_: Any,
    ) -> None:
        for stats in iteration_stats.finished_requests if iteration_stats else ():
            self._keep(stats.request_id, stats)

    def _keep(self, request_id: str, stats: Any) -> None:
        timings = EngineTimings(
            queue_seconds=stats.queued_time,
            prefill_seconds=stats.prefill_time,
            decode_seconds=stats.decode_time,
            prompt_tokens=stats.num_prompt_tokens,
            completion_tokens=stats.num_generation_tokens,
            cached_tokens=stats.num_cached_tokens,
        )
        # A text completion's prompts are requests of their own, with their number behind the id.
        text = request_id.startswith("cmpl-")
        prompts = self._finished.setdefault(
            request_id.rpartition("-")[0] if text else request_id, {}
        )
        if (earlier := prompts.get(request_id)) is not None:  # n > 1: one entry a choice
            timings = _longest(
                earlier,
                timings,
                prompt_tokens=earlier.prompt_tokens,
                cached_tokens=max(earlier.cached_tokens, timings.cached_tokens),
            )
        prompts[request_id] = timings
        while len(self._finished) > KEPT_TIMINGS:
            self._finished.popitem(last=False)

    def take(self, request_id: str) -> EngineTimings | None:
        prompts = self._finished.pop(request_id, None)
        return reduce(_together, prompts.values()) if prompts else None

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...

    def record_sleep_state(self, *_: Any) -> None: ...

    def record_admission_rejection(self, *_: Any) -> None: ...


def _together(one: EngineTimings, other: EngineTimings) -> EngineTimings:
    """Two prompts of one request."""
    return _longest(
        one,
        other,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )


def _longest(
    one: EngineTimings, other: EngineTimings, *, prompt_tokens: int, cached_tokens: int
) -> EngineTimings:
    """Choices of one request run side by side: the longest counts, their tokens add up."""
    return EngineTimings(
        queue_seconds=max(one.queue_seconds, other.queue_seconds),
        prefill_seconds=max(one.prefill_seconds, other.prefill_seconds),
        decode_seconds=max(one.decode_seconds, other.decode_seconds),
        prompt_tokens=prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=cached_tokens,
    )

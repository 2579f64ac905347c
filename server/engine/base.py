"""What the server asks of an engine: OpenAI chat or text in, a whole completion or a stream of chunks out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from starlette.types import ASGIApp

#: A request as the engine gets it. One with `messages` is a chat; any other is a text completion.
Body = Mapping[str, Any]


#: `traceparent` and `tracestate`, where a request belongs to a trace.
TraceHeaders = Mapping[str, str]
NO_TRACE: TraceHeaders = MappingProxyType({})


def is_chat(body: Body) -> bool:
    return "messages" in body


def choices_of(body: Body) -> int:
    """How many choices the answer has: `n` for each prompt, those of the first prompt first."""
    prompt, prompts = body.get("prompt"), 1
    if isinstance(prompt, list) and not is_chat(body):
        prompts = 1 if all(type(token) is int for token in prompt) else len(prompt)
    return prompts * max(int(body.get("n") or 1), 1)


#: Fields that change the prompt in ways that no tokenize route knows.
UNCOUNTED_FIELDS = ("documents", "truncate_prompt_tokens", "suffix", "prompt_embeds")


class EngineError(Exception):
    """The root of what an engine can raise."""


def failure(engine: str, said: str) -> EngineError:
    """An engine's own failure, caused by what it said.

    That may quote the prompt, and so the log leaves it out as it does a library's words.
    """
    error = EngineError(f"{engine} failed: {said}")
    error.__cause__ = RuntimeError(said)
    return error


class EngineRejected(EngineError):
    """The engine refused the request: its own message, and the HTTP status that it gave."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code


class EngineOverloaded(EngineError):
    """The engine's queue is full; the same request may go through later.

    `status` and `retry_after` (a `Retry-After` header) are what an upstream said of it.
    """

    def __init__(self, message: str, *, status: int = 503, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class EngineUnreachable(EngineError):
    """An engine elsewhere does not answer now; it may come back while this process lives."""


class EngineTimeout(EngineUnreachable):
    """An engine elsewhere took the request and then said nothing for too long; it may still work on it."""


class EngineDead(EngineError):
    """The engine has died and does not come back in this process."""


class EngineUnsupported(EngineError):
    """This engine cannot do what was asked (a route or feature it does not have)."""


def refuse_uncounted(body: Body) -> None:
    """Raises EngineRejected for a prompt whose tokens cannot be counted: sources could push the question out."""
    if any(body.get(name) is not None for name in UNCOUNTED_FIELDS):
        raise EngineRejected(f"prompts with {', '.join(UNCOUNTED_FIELDS)} cannot be counted")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model an engine serves. `max_model_len` is prompt and answer together, in tokens."""

    id: str
    created: int
    owned_by: str
    max_model_len: int | None = None
    root: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """The engine's own account of one finished request, in seconds and tokens."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Events(Protocol):
    """A stream's server-sent events, one whole event an item.

    `aclose()` aborts the engine's work, whether or not anyone has begun to read; it may be called twice.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """One model server. All methods belong to one event loop."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def asgi_app(self) -> ASGIApp:
        """The engine's own HTTP routes, of which the server opens an allow-list."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """Texts that the tokenizer turns into one control or added token wherever they stand."""

    async def models(self) -> Sequence[ModelCard]:
        """The models by the names clients may ask for; the first is the default."""

    def answering(self, model: str) -> Engine:
        """The engine that answers for this model: itself, unless it is made of several.

        Its window, its counts and its health are those that a request for the model meets. Raises EngineRejected.
        """

    async def complete(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> bytes:
        """A whole completion as JSON bytes, `id` being `request_id`; its spans go below `trace_headers`.

        Cancelling the call aborts the engine's work. Raises EngineError.
        """

    async def stream(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> Events:
        """Accept the request, then return its events, before the first token is there.

        Raises EngineError where the engine refuses; what fails later arrives as an `error` event.
        """

    async def count_tokens(self, body: Body) -> int:
        """Tokens of the prompt that `body` renders to, chat template and tools included.

        A text completion must have one prompt, a string. Raises EngineError.
        """

    def count_text(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text alone, without special tokens."""

    def timings(self, request_id: str) -> EngineTimings | None:
        """What the engine measured of a finished request, once; None if it does not tell."""

    def check_health(self) -> None:
        """Raises EngineDead once the engine cannot answer any more, EngineUnreachable while it does not."""


@runtime_checkable
class Sleeper(Engine, Protocol):
    """An engine that can free its accelerator for a while, as a snapshot of its memory needs it."""

    async def sleep(self) -> None:
        """Move the weights to the host's memory and drop keys and values; nothing may be asked meanwhile.

        Raises EngineUnsupported where the engine was not started for it.
        """

    async def wake(self) -> None:
        """Make it as it was, with an empty cache. Raises EngineUnsupported."""


def sleeper(engine: Engine) -> Sleeper:
    """The engine as one that can sleep. Raises EngineUnsupported for one of a kind that cannot."""
    if not isinstance(engine, Sleeper):
        raise EngineUnsupported("only an engine in this process can sleep")
    return engine


def trouble(engine: Engine, model: str) -> EngineError | None:
    """Why the engine of this model is known not to answer now; None where nothing is known."""
    try:
        engine.answering(model).check_health()
    except (EngineUnreachable, EngineDead) as error:
        return error
    return None

"""One upstream as an `Engine`: its completions, its models, its counts, and whether it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette
from starlette.types import ASGIApp

from server.engine.base import (
    NO_TRACE,
    Body,
    Engine,
    EngineError,
    EngineTimings,
    EngineUnreachable,
    ModelCard,
    TraceHeaders,
    choices_of,
    is_chat,
    refuse_uncounted,
)
from server.engine.upstream import answers
from server.engine.upstream.estimate import estimate_prompt, estimate_text
from server.engine.upstream.link import Link, UpstreamOptions, open_client, reason
from server.engine.upstream.special_tokens import KNOWN_SPECIAL_TOKENS
from server.engine.upstream.sse_events import EventSplitter, EventTooLong

log = logging.getLogger(__name__)

#: How often the upstream is asked whether it is there.
PROBE_SECONDS = 5.0
#: How long the end of a finished stream is waited for; beyond it another connection is cheaper.
READ_OUT_SECONDS = 0.5
#: What `/tokenize` reads of a request.
TOKENIZE_FIELDS = (
    "model", "prompt", "messages", "tools", "add_generation_prompt", "continue_final_message",
    "add_special_tokens", "chat_template", "chat_template_kwargs",
)  # fmt: skip
#: No count now, though the next may be one: busy, or refusing this prompt.
PASSING = (400, 408, 413, 422, 429, 500, 502, 503, 504)


@asynccontextmanager
async def open_upstream(options: UpstreamOptions) -> AsyncIterator[UpstreamEngine]:
    """Connect, learn the models, and watch whether it stays there. Raises EngineError."""
    async with open_client(options) as client:
        engine = UpstreamEngine(options, client)
        await engine.learn()
        watch = asyncio.ensure_future(engine.watch())
        try:
            yield engine
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


class UpstreamEngine:
    """One upstream, as an `Engine`."""

    def __init__(self, options: UpstreamOptions, client: httpx.AsyncClient) -> None:
        self._options = options
        self._link = Link(options.name, options.url, client)
        self._cards: tuple[ModelCard, ...] = ()
        self._counts = True

    @property
    def max_model_len(self) -> int:
        known = [card.max_model_len for card in self._cards if card.max_model_len]
        return self._options.max_model_len or min(known)

    @property
    def asgi_app(self) -> ASGIApp:
        return Starlette()  # its own routes stay its own: each is a 404 here

    @property
    def special_tokens(self) -> frozenset[str]:
        return KNOWN_SPECIAL_TOKENS

    async def models(self) -> Sequence[ModelCard]:
        return self._cards

    def answering(self, model: str) -> Engine:  # noqa: ARG002 - it answers for all of them
        return self

    async def learn(self) -> None:
        """Ask for its models and their length; what the options say needs no asking. Raises EngineError."""
        options, where = self._options, self._link.where
        if options.models and options.max_model_len:
            self._cards = tuple(
                ModelCard(name, 0, options.name, options.max_model_len) for name in options.models
            )
            return
        try:
            cards = answers.listed(await self._link.models(), where)
        except EngineUnreachable as error:
            raise EngineUnreachable(
                f"{error}; with its `models` and `max_model_len` set, the server starts without it"
            ) from error
        if missing := set(options.models) - {card.id for card in cards}:
            raise EngineError(f"{where} has no model {', '.join(sorted(missing))}")
        chosen = [card for card in cards if card.id in options.models] or answers.chat_models(cards)
        if not chosen:
            raise EngineError(f"{where} lists no models; name them in its `models`")
        if not options.max_model_len and any(card.max_model_len is None for card in chosen):
            raise EngineError(
                f"{where} does not say how long a prompt may be; set its `max_model_len`"
            )
        self._cards = tuple(chosen)

    async def complete(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> bytes:
        answer = await self._link.json(_path(body), self._body(body, stream=False), trace_headers)
        return answers.completion(answer, request_id, self._link.where, chat=is_chat(body))

    async def stream(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> AsyncGenerator[bytes, None]:
        response = await self._link.open(_path(body), self._body(body, stream=True), trace_headers)
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        events = self._events(response, body, request_id, wants_usage=wants_usage)
        await anext(events)  # a generator that never started would not close its connection
        return events

    async def count_tokens(self, body: Body) -> int:
        refuse_uncounted(body)
        if self._counts:
            fields = {name: body[name] for name in TOKENIZE_FIELDS if body.get(name) is not None}
            try:
                status, answer = await self._link.tokenize(fields)
            except EngineUnreachable as error:
                log.debug("%s", error)
                return estimate_prompt(body)
            count = answer.get("count") if isinstance(answer, dict) else None
            if status == 200 and type(count) is int and count >= 0:
                return count
            # Without such a route, or with another of that name, it is not asked again.
            self._counts = status in PASSING
        return estimate_prompt(body)

    def count_text(self, texts: Sequence[str]) -> list[int]:
        return [estimate_text(text) for text in texts]

    def timings(self, request_id: str) -> EngineTimings | None:  # noqa: ARG002 - it tells nothing
        return None

    def check_health(self) -> None:
        if self._link.down is not None:
            raise EngineUnreachable(self._link.down)

    async def watch(self) -> None:
        """Ask now and then whether it is there; a failed request says so sooner."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self._link.models()
            except EngineUnreachable as error:
                self._link.down = str(error)
            except EngineError as error:  # it answers, though perhaps not this
                log.debug("%s", error)

    def _body(self, body: Body, *, stream: bool) -> dict[str, Any]:
        sent = {**body, "stream": stream}
        if not stream:
            sent.pop("stream_options", None)
        if not self._options.send_cache_salt:
            sent.pop("cache_salt", None)
        return sent

    async def _events(
        self, response: httpx.Response, body: Body, request_id: str, *, wants_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Its chunks under our id. Closing this closes the connection, which is how HTTP says abort."""
        splitter, finished, where = EventSplitter(), set[int](), self._link.where
        chat, choices = is_chat(body), choices_of(body)
        try:
            yield b""
            network = response.aiter_bytes()
            async for network_chunk in network:
                for data in splitter.feed(network_chunk):
                    if data == b"[DONE]":
                        yield b"data: [DONE]\n\n"
                        await _read_out(network)
                        return
                    chunk = orjson.loads(data)
                    if isinstance(chunk, dict) and chunk.get("error") is not None:
                        yield answers.error_event(*answers.error_of(chunk))
                        return
                    if answers.is_noise(chunk, wants_usage=wants_usage):
                        continue
                    finished |= answers.ended(chunk, choices, chat=chat)
                    yield answers.chunk_event(data, chunk, request_id)
            if len(finished) < choices:
                yield answers.error_event(f"{where} broke off in the middle of the answer")
            else:  # some servers end without the marker
                yield b"data: [DONE]\n\n"
        except httpx.HTTPError as error:
            yield answers.error_event(f"{where} broke off: {reason(error)}")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, EventTooLong):
            yield answers.error_event(f"{where} sent a chunk that is no completion chunk")
        finally:
            await response.aclose()


def _path(body: Body) -> str:
    return "/chat/completions" if is_chat(body) else "/completions"


async def _read_out(network: AsyncIterator[bytes]) -> None:
    """Read the few bytes after the last event: only a connection that was read to its end is used again."""
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(READ_OUT_SECONDS):
            async for _ in network:
                pass

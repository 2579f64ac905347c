"""An engine without weights: answers by script, fails on request. For demos, docs, and tests of speed and faults.

It never stands in for the real engine where the question is what the model saw; what it does promise is the
same wire format as vLLM's, chunk by chunk, so that everything above it runs unchanged.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.engine.base import (
    NO_TRACE,
    Body,
    Engine,
    EngineDead,
    EngineOverloaded,
    EngineRejected,
    EngineTimings,
    ModelCard,
    TraceHeaders,
    choices_of,
    is_chat,
)

#: OpenAI's limit of `n`.
MAX_CHOICES = 128
#: What an answer to a text completion without a limit ends at, as in OpenAI's API.
TEXT_TOKENS = 16
#: Requests that are remembered.
KEPT = 100
#: Its tokenizer: a special token, a run of word characters, or one other character that is not a space.
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TOKEN = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|\w+|[^\w\s]")


@dataclass(frozen=True)
class Script:
    """What the engine does, the same for each request.

    `answer` is the text; None echoes the question's last words. `fail` is one of "" (never), "reject",
    "overloaded", "dead" (before the first byte) or "midstream" (after three tokens). Delays are seconds.
    """

    model: str = "scripted"
    answer: str | None = "The sources say so [1]."
    max_model_len: int = 4096
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    token_seconds: float = 0.0
    fail: str = ""


@dataclass
class Seen:
    """What the engine was given and gave up, for whoever drives it: bodies, and ids of aborted requests.

    `slept` counts how often it was sent to sleep; `asleep` is whether it was not woken since.
    """

    bodies: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    aborted: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    slept: int = 0
    asleep: bool = False


class ScriptedEngine:
    """One scripted engine, as an `Engine`."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.seen = Seen()
        self._timings: dict[str, EngineTimings] = {}
        self._created = int(time.time())

    @property
    def max_model_len(self) -> int:
        return self.script.max_model_len

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset(SPECIAL_TOKENS)

    @property
    def asgi_app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/version", self._version),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
            ]
        )

    async def models(self) -> Sequence[ModelCard]:
        return [ModelCard(self.script.model, self._created, "groundwire", self.max_model_len)]

    def answering(self, model: str) -> Engine:  # noqa: ARG002 - it answers for all of them
        return self

    async def complete(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,  # noqa: ARG002
    ) -> bytes:
        prompt_tokens = await self._accept(body)
        start = time.perf_counter()
        try:
            tokens = self._answer(body)
            await self._reach(start, tokens=len(tokens))
        except asyncio.CancelledError:
            self.seen.aborted.append(request_id)
            raise
        self._finish(request_id, start, prompt_tokens, len(tokens))
        return orjson.dumps(
            {
                "id": request_id,
                "object": "chat.completion" if is_chat(body) else "text_completion",
                "created": self._created,
                "model": self.script.model,
                "choices": [
                    {"index": i, **said, "logprobs": None, "finish_reason": "stop"}
                    for i, said in enumerate(_said(body, "".join(tokens)))
                ],
                "usage": _usage(prompt_tokens, len(tokens)),
            }
        )

    async def stream(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,  # noqa: ARG002
    ) -> AsyncGenerator[bytes, None]:
        prompt_tokens = await self._accept(body)
        return self._events(body, request_id, prompt_tokens)

    async def count_tokens(self, body: Body) -> int:
        return len(_prompt(body))

    def count_text(self, texts: Sequence[str]) -> list[int]:
        return [len(TOKEN.findall(text)) for text in texts]

    def timings(self, request_id: str) -> EngineTimings | None:
        return self._timings.pop(request_id, None)

    def check_health(self) -> None:
        if self.script.fail == "dead":
            raise EngineDead("the scripted engine was told to be dead")

    async def sleep(self) -> None:
        self.seen.slept += 1
        self.seen.asleep = True

    async def wake(self) -> None:
        self.seen.asleep = False

    async def _accept(self, body: Body) -> int:
        self.seen.bodies.append(dict(body))
        self.check_health()
        if self.script.fail == "overloaded":
            raise EngineOverloaded("the scripted engine was told to be overloaded")
        if self.script.fail == "reject":
            raise EngineRejected("the scripted engine was told to reject", param="messages")
        if not is_chat(body) and not body.get("prompt"):
            raise EngineRejected("a text completion needs a prompt", param="prompt")
        if not 1 <= (1 if body.get("n") is None else body["n"]) <= MAX_CHOICES:
            raise EngineRejected(f"n must be 1 to {MAX_CHOICES}", param="n")
        prompt_tokens = await self.count_tokens(body)
        each = [prompt_tokens] if is_chat(body) else [len(TOKEN.findall(t)) for t in _texts(body)]
        if max(each) > self.max_model_len:
            raise EngineRejected(
                f"This model's maximum context length is {self.max_model_len} tokens, "
                f"and the prompt has {max(each)}.",
                code="context_length_exceeded",
            )
        return prompt_tokens

    async def _reach(self, start: float, *, tokens: int) -> None:
        """Return when this many tokens are due: a late timer, or a slow reader, does not delay the later ones."""
        script = self.script
        due = script.queue_seconds + script.prefill_seconds + tokens * script.token_seconds
        await asyncio.sleep(max(start + due - time.perf_counter(), 0.0))

    def _answer(self, body: Body) -> list[str]:
        text = self.script.answer
        if text is None:
            text = " ".join(_texts(body)[-1].split()[-12:])
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if not is_chat(body):
            limit = body.get("max_tokens", TEXT_TOKENS)
        return re.findall(r"\s*\S+", text)[:limit]

    async def _events(
        self, body: Body, request_id: str, prompt_tokens: int
    ) -> AsyncGenerator[bytes, None]:
        start, tokens, n = time.perf_counter(), self._answer(body), choices_of(body)
        chat, done = is_chat(body), False
        try:
            await self._reach(start, tokens=0)
            for i in range(n if chat else 0):
                delta = {"role": "assistant", "content": ""}
                yield self._chunk(request_id, i, {"delta": delta})
            for i, echo in enumerate(_echoes(body)):
                if echo:
                    yield self._chunk(request_id, i, {"text": echo})
            for position, token in enumerate(tokens):
                await self._reach(start, tokens=position + 1)
                if self.script.fail == "midstream" and position == 3:
                    yield _error_event("the scripted engine was told to fail midstream")
                    yield b"data: [DONE]\n\n"
                    done = True
                    return
                finish = "stop" if position == len(tokens) - 1 else None
                for i in range(n):
                    yield self._chunk(request_id, i, _part(token, chat=chat), finish)
            for i in range(0 if tokens else n):
                yield self._chunk(request_id, i, _part("", chat=chat), "stop")
            self._finish(request_id, start, prompt_tokens, len(tokens))
            done = True
            if (body.get("stream_options") or {}).get("include_usage"):
                yield self._event(
                    request_id, {"choices": [], "usage": _usage(prompt_tokens, len(tokens))}
                )
            yield b"data: [DONE]\n\n"
        finally:
            if not done:
                self.seen.aborted.append(request_id)

    def _chunk(
        self, request_id: str, index: int, part: dict[str, Any], finish: str | None = None
    ) -> bytes:
        choice = {"index": index, **part, "logprobs": None, "finish_reason": finish}
        return self._event(request_id, {"choices": [choice]})

    def _event(self, request_id: str, payload: dict[str, Any]) -> bytes:
        chat = request_id.startswith("chatcmpl-")
        head = {
            "id": request_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": self._created,
            "model": self.script.model,
        }
        return b"data: " + orjson.dumps({**head, **payload}) + b"\n\n"

    def _finish(self, request_id: str, start: float, prompt_tokens: int, tokens: int) -> None:
        waited = self.script.queue_seconds + self.script.prefill_seconds
        self._timings[request_id] = EngineTimings(
            queue_seconds=self.script.queue_seconds,
            prefill_seconds=self.script.prefill_seconds,
            decode_seconds=max(time.perf_counter() - start - waited, 0.0),
            prompt_tokens=prompt_tokens,
            completion_tokens=tokens,
            cached_tokens=0,
        )

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": "scripted"})

    async def _tokenize(self, request: Request) -> Response:
        try:
            body = orjson.loads(await request.body())
            if body.get("model") not in (None, self.script.model):
                return _no_such_model(body["model"])
            found = TOKEN.findall(body["prompt"]) if "prompt" in body else _prompt(body)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            message = f"prompt must be a string, or messages a list: {error}"
            body = {"error": {"message": message, "type": "x", "param": "prompt", "code": 400}}
            return JSONResponse(body, status_code=400)
        tokens = [sum(token.encode()) for token in found]
        return JSONResponse(
            {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
        )

    async def _detokenize(self, _: Request) -> Response:
        body = {
            "error": {"message": "the scripted engine cannot detokenize", "type": "x", "code": 501}
        }
        return JSONResponse(body, status_code=501)


def _no_such_model(name: Any) -> Response:
    message = f"The model `{name}` does not exist."
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
    return JSONResponse({"error": error}, status_code=404)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _error_event(message: str) -> bytes:
    return (
        b"data: "
        + orjson.dumps({"error": {"message": message, "type": "server_error", "code": 500}})
        + b"\n\n"
    )


def _said(body: Body, answer: str) -> list[dict[str, Any]]:
    """What each choice of a whole answer says."""
    if is_chat(body):
        message = {"role": "assistant", "content": answer, "refusal": None, "annotations": None}
        return [{"message": message}] * choices_of(body)
    return [{"text": echo + answer} for echo in _echoes(body)]


def _part(text: str, *, chat: bool) -> dict[str, Any]:
    """What a chunk says."""
    return {"delta": {"content": text}} if chat else {"text": text}


def _echoes(body: Body) -> list[str]:
    """What each choice of a text completion says first: its prompt, or nothing."""
    if is_chat(body):
        return []
    choices, echoed = choices_of(body), _texts(body) if body.get("echo") else [""]
    return [echoed[i * len(echoed) // choices] for i in range(choices)]


def _prompt(body: Body) -> list[str]:
    """The tokens of the prompts, each message of a chat framed as ChatML frames one."""
    if not is_chat(body):
        return [token for text in _texts(body) for token in TOKEN.findall(text)]
    tokens = []
    for text in _texts(body):
        tokens += ["<|im_start|>", "role", "\n", *TOKEN.findall(text), "<|im_end|>"]
    return [*tokens, "<|im_start|>", "assistant", "\n"]


def _texts(body: Body) -> list[str]:
    """The messages' texts, or the prompts; a token id is a word of its own."""
    if not is_chat(body):
        prompt = body["prompt"]
        prompts = prompt if isinstance(prompt, list) and type(prompt[0]) is not int else [prompt]
        return [p if isinstance(p, str) else " ".join(map(str, p)) for p in prompts]
    texts = []
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", "")) for part in content)
        texts.append(content or "")
    return texts

"""A request between its grounding and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server import receipts
from server.engine.base import Engine, EngineError, EngineRejected, is_chat
from server.plan import Plan
from server.receipts import Receipt
from server.telemetry.recorder import Recording
from server.weave_text import NOTHING, of_prompt


@dataclass(frozen=True, slots=True)
class Count:
    """What a dry run counted of one prompt, in tokens: the whole, and the client's texts alone."""

    prompt: int
    messages: int


@dataclass(slots=True)
class Prepared:
    """A request ready for the engine: what it asked, what it was given, and the body to send.

    `bare` is the body without context. Not frozen: an engine that counts otherwise than we estimated may
    refuse the context, which is then taken out before anything was said; and an engine that cannot answer may
    give way to the other one of its route. `fell_from` is then why. `counts` are a dry run's, one a prompt
    (None: it could not be counted).
    """

    plan: Plan
    body: Mapping[str, Any]
    bare: Mapping[str, Any]
    completion_id: str
    recording: Recording
    fell_from: EngineError | None = None
    counts: tuple[Count | None, ...] = ()

    @property
    def receipt(self) -> Receipt:
        return self.recording.receipt

    @property
    def grounded(self) -> bool:
        return self.receipt.status != "off"

    @property
    def echoed(self) -> tuple[str, ...]:
        """The prompts that a text completion repeats in front of its answers."""
        if not self.body.get("echo"):
            return NOTHING
        prompt = self.body["prompt"]
        return (prompt,) if isinstance(prompt, str) else tuple(prompt)

    @property
    def refuses(self) -> bool:
        """Whether it is answered without an engine: there are no sources, and the client wants no answer then."""
        return self.plan.on_empty == "refuse" and self.receipt.status in ("miss", "degraded")

    @property
    def one_by_one(self) -> list[Mapping[str, Any]]:
        """A body for each prompt of a text completion; any other is one already."""
        if is_chat(self.body):
            return [self.body]
        prompt = self.body["prompt"]
        if isinstance(prompt, str) or all(type(token) is int for token in prompt):
            return [self.body]
        return [{**self.body, "prompt": one} for one in prompt]

    def without_echo(self, texts: Sequence[str]) -> list[str]:
        """What the choices say behind the prompts that a text completion repeats."""
        echoed = self.echoed
        return [
            text.removeprefix(of_prompt(echoed, index, len(texts)))
            for index, text in enumerate(texts)
        ]

    def leave_out_context(self) -> None:
        """Take the context out again: the engine has no room for it."""
        self.body = self.bare
        self.recording.grounded_in(receipts.without_sources(self.receipt, "no_room"))

    def leave_out_route(self) -> None:
        """No model answers, whichever would have."""
        self.recording.grounded_in(replace(self.receipt, route=None))

    def fall_back(self, error: EngineError) -> None:
        """Address it to the other model of its route, because of `error`; nothing is counted anew."""
        # Its traceback holds this request, which would hold it: neither would go before the collector comes.
        self.fell_from = error.with_traceback(None)
        self.plan = self.recording.plan = self.plan.fallen_back()
        grounded, model = self.body is not self.bare, self.plan.engine_model
        self.bare = {**self.bare, "model": model}
        self.body = {**self.body, "model": model} if grounded else self.bare
        # The other model's tokenizer counts otherwise.
        self.recording.grounded_in(receipts.uncounted(replace(self.receipt, route=self.plan.route)))


async def prompt_tokens(engine: Engine, body: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt as the engine will see it; None where it cannot be counted."""
    try:
        return await engine.count_tokens(body)
    except EngineRejected:
        return None  # the engine will say what is wrong with the request, in its own words


def free_beside(engine: Engine, planned: Plan, prompt: int) -> int:
    """Tokens free for sources beside a prompt, never so many that the client's answer gets shorter."""
    return engine.answering(planned.engine_model).max_model_len - prompt - planned.answer_tokens


async def free_tokens(engine: Engine, planned: Plan, body: Mapping[str, Any]) -> int | None:
    """Tokens free for sources beside this prompt; None: uncounted."""
    prompt = await prompt_tokens(engine, body)
    return None if prompt is None else free_beside(engine, planned, prompt)

"""routing: which of two models answers a request for `auto`. A cheap rule about the request alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from server.queries import question_index, text_of
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

#: The model's name that leaves the choice to the server.
AUTO = "auto"
Size = Literal["small", "large"]
#: Why a request went where it went; the labels of a metric, so never more than these.
Reason = Literal[
    "simple", "tools", "structured", "media", "long_answer", "many_turns", "long_prompt", "long_question",
    "code", "words", "requested", "fallback",
]  # fmt: skip
Request = ChatRequest | CompletionRequest
#: English is about four characters a token.
CHARACTERS_PER_ID = 4
#: Fields that bind the answer's form: OpenAI's, vLLM's, and vLLM's older ones.
STRUCTURED = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
#: Backticks, operators of programs, calls without arguments, and lines that end as lines of programs do.
CODE = re.compile(r"```|`[^`\n]+`|[=!]=|=>|->|\w\(\)|[{};]\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request for `auto` goes: `model` answers, `other` would if it could not."""

    size: Size
    reason: Reason
    model: str
    other: str

    def fallen_back(self) -> Route:
        """The way to the other model."""
        size: Size = "large" if self.size == "small" else "small"
        return Route(size, "fallback", model=self.other, other=self.model)


@dataclass(frozen=True)
class Rule:
    """The two models, and up to where a request is simple enough for the small one.

    Characters count the texts of the messages, turns those of the user; a prompt of a text completion is one
    turn. `words` ask for reasoning, wherever they stand in the question.
    """

    small: str
    large: str
    max_question_characters: int
    max_prompt_characters: int
    max_turns: int
    max_answer_tokens: int
    words: tuple[str, ...]

    @cached_property
    def asks_to_reason(self) -> re.Pattern[str]:
        words = "|".join(map(re.escape, self.words))
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)" if words else r"(?!)", re.IGNORECASE)


def choose(request: Request, asked: Size | None, rule: Rule) -> Route:
    """The route that the client asked for, else the rule's: to the large model for the first reason to."""
    if asked is not None:
        return _route(asked, "requested", rule)
    reason = next(_reasons(request, rule), None)
    return _route("small", "simple", rule) if reason is None else _route("large", reason, rule)


def _route(size: Size, reason: Reason, rule: Rule) -> Route:
    small, large = rule.small, rule.large
    model, other = (small, large) if size == "small" else (large, small)
    return Route(size, reason, model=model, other=other)


def _reasons(request: Request, rule: Rule) -> Iterator[Reason]:
    """Why a request is not simple, the cheapest to see first."""
    if isinstance(request, ChatRequest):
        yield from _reasons_of_chat(request)
    if _is_structured(request):
        yield "structured"
    if (request.answer_limit or 0) > rule.max_answer_tokens:
        yield "long_answer"
    if _turns(request) > rule.max_turns:
        yield "many_turns"
    if _prompt_characters(request) > rule.max_prompt_characters:
        yield "long_prompt"
    question = _question(request)
    if len(question) > rule.max_question_characters:
        yield "long_question"
    if CODE.search(question):
        yield "code"
    if rule.asks_to_reason.search(question):
        yield "words"


def _reasons_of_chat(request: ChatRequest) -> Iterator[Reason]:
    if _has_tools(request):
        yield "tools"
    if any(_has_media(message.content) for message in request.messages):
        yield "media"


def _turns(request: Request) -> int:
    if isinstance(request, ChatRequest):
        return sum(message.role == "user" for message in request.messages)
    return len(request.texts or ())


def _prompt_characters(request: Request) -> int:
    if isinstance(request, ChatRequest):
        return sum(len(text_of(message.content)) for message in request.messages)
    return sum(map(len, request.texts)) if request.texts else CHARACTERS_PER_ID * _ids(request)


def _ids(request: CompletionRequest) -> int:
    return sum(len(part) if isinstance(part, list) else 1 for part in request.prompt or ())


def _question(request: Request) -> str:
    """What is asked: a chat's last question, all prompts of a text completion."""
    if isinstance(request, CompletionRequest):
        return "\n\n".join(request.texts or ())
    index = question_index(request.messages)
    return "" if index is None else text_of(request.messages[index].content)


def _has_tools(request: ChatRequest) -> bool:
    """Function tools, or a turn of one; file search is ours and changes nothing for the model."""
    return any(tool.get("type") != "file_search" for tool in request.tools or ()) or any(
        message.role == "tool" for message in request.messages
    )


def _is_structured(request: Request) -> bool:
    extra = request.model_extra or {}
    form = extra.get("response_format")
    wanted = form.get("type") if isinstance(form, dict) else form
    return wanted not in (None, "text") or any(extra.get(name) is not None for name in STRUCTURED)


def _has_media(content: object) -> bool:
    return any(
        part.get("type", "text") != "text" or any(key.endswith("_url") for key in part)
        for part in (content if isinstance(content, list) else ())
    )

"""plan: what a request asks for becomes a `Plan`: which stores, which question, which options. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from retrieval.types import FusionWeights, WeightedText
from server.errors import BadRequest, ModelNotFound
from server.queries import (
    FollowUpWeights,
    fusion_weights,
    in_context,
    question_index,
    tail_of,
    text_of,
)
from server.routing import AUTO, Route, Rule, Size, choose
from server.wire.chat import ChatRequest, FileSearchTool, Message, RagOptions
from server.wire.completions import CompletionRequest

Role = Literal["chat", "embedder"]
#: The store name that means "no retrieval" in a model alias.
NO_STORE = "none"
#: What OpenAI's API and vLLM take for the `max_tokens` of a text completion that gives none.
TEXT_ANSWER_TOKENS = 16
#: Prompts of one text completion that can be grounded: each costs a retrieval of its own.
MAX_GROUNDED_PROMPTS = 32


@dataclass(frozen=True, slots=True)
class Models:
    """The names that exist: the engine's (first = default), the embedder's, and aliases by pattern.

    With `routing`, `auto` is one more.
    """

    chat: tuple[str, ...]
    embedder: str
    aliases: Mapping[str, str]
    routing: Rule | None = None

    @property
    def chatting(self) -> tuple[str, ...]:
        """The names that can chat."""
        return self.chat if self.routing is None else (*self.chat, AUTO)

    def exact(self, name: str) -> str | None:
        """The real model of exactly this name or alias; None if there is none."""
        if name in self.chatting or name == self.embedder:
            return name
        return self._target(self.aliases[name]) if name in self.aliases else None

    def resolve(self, name: str) -> str | None:
        """The real model behind an exact or foreign name; None if there is none."""
        if (model := self.exact(name)) is not None:
            return model
        for pattern, target in self.aliases.items():
            if fnmatchcase(name, pattern):
                return self._target(target)
        return None

    def _target(self, target: str) -> str:
        return {"chat": self.chat[0], "embedder": self.embedder}.get(target, target)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The settings that a request may override."""

    default_store: str | None
    top_k: int
    max_context_tokens: int
    answer_reserve_tokens: int
    on_error: Literal["skip", "fail"]
    max_tokens: int | None = None
    media_domains: tuple[str, ...] = ()
    sticky: bool = False
    max_choices: int = 128
    followup: FollowUpWeights = field(default_factory=FollowUpWeights)


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, understood.

    `store_refs` are ids or names as the client wrote them; empty means no retrieval. `chosen_in` is the
    field in which the client chose them (None: it did not). `answer_tokens` is what the budget keeps for the
    answer; `question_index` is the message that carries question and context; `also` is searched beside the
    question (the same together with the turn before it); `weights` are the request's own, if it gave some;
    `route` is how `auto` became `engine_model`; `max_tokens` is the server's limit for a chat without one. A text
    completion's question is its prompt's, and its index 0; several prompts are asked one by one. A `dry_run` ends
    before the engine.
    """

    model: str
    engine_model: str
    stream: bool
    store_refs: tuple[str, ...]
    question: str
    also: tuple[WeightedText, ...]
    weights: FusionWeights | None
    question_index: int | None
    top_k: int
    score_threshold: float
    max_context_tokens: int
    answer_tokens: int
    on_error: Literal["skip", "fail"]
    on_empty: Literal["answer", "refuse"]
    include_text: bool
    footer: bool
    sticky: bool
    chosen_in: str | None
    route: Route | None = None
    max_tokens: int | None = None
    dry_run: bool = False

    def fallen_back(self) -> Plan:
        """The same for the other model of the route."""
        assert self.route is not None
        route = self.route.fallen_back()
        return replace(self, engine_model=route.model, route=route)

    @property
    def searches(self) -> bool:
        return bool(self.store_refs) and self.question_index is not None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks, where, and how it may be grounded."""

    question: str
    also: tuple[WeightedText, ...]
    index: int | None
    store_refs: tuple[str, ...]
    chosen_in: str | None
    answer_tokens: int
    sticky: bool
    max_tokens: int | None = None


def plan(
    request: ChatRequest | CompletionRequest,
    headers: Mapping[str, str],
    models: Models,
    defaults: Defaults,
) -> Plan:
    """Apply WIRE section 2 to a request.

    `headers` must be lower-cased. Raises BadRequest naming the field, ModelNotFound.
    """
    name = request.model or models.chat[0]
    engine_model, alias_store = split_model(name, models)
    rag = request.rag or RagOptions()
    _refuse_unbuilt(rag)
    _refuse_many_choices(request, defaults.max_choices)
    route = _route(request, rag, headers, engine_model, models.routing)
    tool = None
    if isinstance(request, ChatRequest):
        refuse_remote_media(request.messages, defaults.media_domains)
        tool = _file_search(request.tools or ())
        asked = _asked_in_chat(request, tool, headers, alias_store, defaults)
    else:
        if not request.asks_for_sources and alias_store is None:
            # Text completions also go on with code and score test sets: what was set once, for the server or
            # for all of a client's requests, must not change their prompts.
            headers, defaults = {}, replace(defaults, default_store=None)
        asked = _asked_in_text(request, headers, alias_store, defaults)
    ranking = (tool.ranking_options if tool else None) or rag.ranking_options
    return Plan(
        model=name,
        engine_model=engine_model if route is None else route.model,
        stream=bool(request.stream),
        store_refs=asked.store_refs,
        question=asked.question,
        also=asked.also,
        weights=fusion_weights(ranking),
        question_index=asked.index,
        top_k=_top_k(tool, rag, headers, defaults.top_k),
        score_threshold=(ranking.score_threshold if ranking else None) or 0.0,
        max_context_tokens=(
            defaults.max_context_tokens
            if rag.max_context_tokens is None
            else rag.max_context_tokens
        ),
        answer_tokens=asked.answer_tokens,
        on_error=rag.on_error or defaults.on_error,
        on_empty=rag.on_empty or "answer",
        include_text=bool(rag.include_text),
        footer=bool(rag.footer),
        sticky=asked.sticky,
        chosen_in=asked.chosen_in,
        route=route,
        max_tokens=asked.max_tokens,
        dry_run=bool(rag.dry_run),
    )


def _asked_in_chat(
    request: ChatRequest,
    tool: FileSearchTool | None,
    headers: Mapping[str, str],
    alias_store: str | None,
    defaults: Defaults,
) -> _Asked:
    if tool is not None and tool.filters is not None:
        raise BadRequest("filters on file_search are not supported yet", param="tools.filters")
    rag = request.rag or RagOptions()
    refs, chosen_in = _choose_stores(tool, rag, headers, alias_store, defaults.default_store)
    index = question_index(request.messages)
    return _Asked(
        question=text_of(request.messages[index].content) if index is not None else "",
        also=in_context(request.messages, index, defaults.followup),
        index=index,
        store_refs=refs,
        chosen_in=chosen_in,
        answer_tokens=_answer_tokens(
            request, defaults.max_tokens or defaults.answer_reserve_tokens
        ),
        sticky=defaults.sticky if rag.sticky is None else rag.sticky,
        max_tokens=defaults.max_tokens if request.answer_limit is None else None,
    )


def _asked_in_text(
    request: CompletionRequest,
    headers: Mapping[str, str],
    alias_store: str | None,
    defaults: Defaults,
) -> _Asked:
    rag = request.rag or RagOptions()
    if rag.sticky:
        raise BadRequest("a text completion has no earlier turns to keep", param="rag.sticky")
    if request.asks_for_sources and rag.enabled is None:
        rag = rag.model_copy(update={"enabled": True})  # to send one is to ask for sources
    refs, chosen_in = _choose_stores(None, rag, headers, alias_store, defaults.default_store)
    texts = request.texts or ()
    if refs:
        _refuse_ungroundable(request, rag, texts)
    return _Asked(
        question=tail_of(texts[0]) if len(texts) == 1 else "",
        also=(),
        index=0 if texts else None,
        store_refs=refs,
        chosen_in=chosen_in,
        answer_tokens=(
            TEXT_ANSWER_TOKENS if request.max_tokens is None else max(request.max_tokens, 0)
        ),
        sticky=False,
    )


def _refuse_ungroundable(request: CompletionRequest, rag: RagOptions, texts: Sequence[str]) -> None:
    """Raises BadRequest for prompts that sources cannot be found for, or cannot be put in front of."""
    if (request.model_extra or {}).get("prompt_embeds") is not None:
        raise BadRequest("embeddings of a prompt cannot be grounded", param="prompt_embeds")
    if request.prompt and not texts:
        raise BadRequest(
            "a prompt of token ids cannot be grounded; send it as text, or turn retrieval off "
            "(`rag.enabled: false`)",
            param="prompt",
        )
    if len(texts) > MAX_GROUNDED_PROMPTS:
        raise BadRequest(
            f"at most {MAX_GROUNDED_PROMPTS} prompts of one request can be grounded", param="prompt"
        )
    if rag.on_empty == "refuse" and len(texts) > 1:
        raise BadRequest("`refuse` takes one prompt a request", param="rag.on_empty")


def text_body(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """A text completion as the engine may see it; by `messages` it would take it for a chat."""
    engine = _engine_fields(body, plan)
    engine.pop("messages", None)
    return engine


def _engine_fields(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in body.items()
        if value is not None and key not in ("rag", "request_id")
    }
    return {**kept, "model": plan.engine_model}


def engine_body(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """A chat as the engine may see it: our fields, nulls and OpenAI's hosted tool taken out."""
    engine = _engine_fields(body, plan)
    engine["messages"] = [_engine_message(message) for message in body["messages"]]
    if plan.max_tokens is not None:
        engine["max_tokens"] = plan.max_tokens
    tools = engine.get("tools")
    if isinstance(tools, list) and any(_is_file_search(tool) for tool in tools):
        engine["tools"] = [tool for tool in tools if not _is_file_search(tool)]
        if _is_file_search(engine.get("tool_choice")):
            engine.pop("tool_choice")
        if not engine["tools"]:
            # Each of these is a 400 of the engine's without tools.
            for key in ("tools", "tool_choice", "parallel_tool_calls"):
                engine.pop(key, None)
    return engine


def _engine_message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """One message without nulls and the `annotations` that clients send back; `developer` is `system`."""
    if message.get("role") == "developer":
        message = {**message, "role": "system"}
    # `content` is no optional field: beside tool calls null is its value, elsewhere the engine's to refuse.
    kept = {
        key: value
        for key, value in message.items()
        if key == "content" or not (value is None or key == "annotations")
    }
    return kept if len(kept) < len(message) else message


def refuse_remote_media(messages: Sequence[Message], domains: Sequence[str]) -> None:
    """Raises BadRequest for a media part whose URL would make the server fetch from a domain not listed."""
    for index, message in enumerate(messages):
        content = message.content
        for position, part in enumerate(content if isinstance(content, list) else ()):
            for url in _media_urls(part):
                host = _host(url)
                if host not in domains:
                    raise BadRequest(
                        f"the server fetches no media from {host or url[:40]!r}; send it as a data: "
                        "URL, or list the domain in allowed_media_domains",
                        param=f"messages.{index}.content.{position}",
                    )


def _media_urls(part: Mapping[str, Any]) -> Iterator[str]:
    """Every URL in a content part that an engine might fetch.

    By key and not by `type`: vLLM takes `image_url` from a part without a type, and from `input_image`.
    """
    for key, value in part.items():
        if not key.endswith("_url") and not (isinstance(value, dict) and "url" in value):
            continue
        url = value.get("url") if isinstance(value, dict) else value
        if isinstance(url, str) and not url.startswith("data:"):
            yield url


def _host(url: str) -> str:
    if "\\" in url:  # read as a slash by some parsers and as a letter by others
        return ""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an IPv6 address that does not close
        return ""


def split_model(name: str, models: Models) -> tuple[str, str | None]:
    """(engine's model, store of the alias). Exact names first, then the last `@` splits, then patterns.

    A pattern comes last because it may swallow the store: `gpt-*` matches `gpt-4o-mini@docs` whole. Raises
    ModelNotFound, and BadRequest for a name that cannot generate.
    """
    resolved, store = models.exact(name), None
    if resolved is None and "@" in name:
        base, _, store = name.rpartition("@")
        resolved = models.resolve(base) if base else models.chat[0]
    if resolved is None:
        resolved, store = models.resolve(name), None
    if resolved is None:
        known = ", ".join((*models.chatting, models.embedder, *models.aliases))
        raise ModelNotFound(f"The model {name!r} does not exist. Known: {known}.")
    if resolved not in models.chatting:
        raise BadRequest(f"{name!r} is an embedding model; it cannot generate", param="model")
    if store == "":
        raise BadRequest(f"{name!r} names no store after the @", param="model")
    return resolved, store


def _route(
    request: ChatRequest | CompletionRequest,
    rag: RagOptions,
    headers: Mapping[str, str],
    engine_model: str,
    rule: Rule | None,
) -> Route | None:
    """The way of a request for `auto`; None for one that names its model."""
    header = headers.get("x-rag-route", "").strip().lower()
    if header not in ("", *get_args(Size)):
        raise BadRequest("the header X-RAG-Route takes small or large", param="X-RAG-Route")
    asked = rag.route or cast("Size | None", header or None)
    if rule is not None and engine_model == AUTO:
        return choose(request, asked, rule)
    if asked is not None:
        raise BadRequest(
            f"a route is chosen for the model {AUTO!r} alone, and this request asks for {engine_model!r}",
            param="rag.route" if rag.route else "X-RAG-Route",
        )
    return None


def _refuse_many_choices(request: ChatRequest | CompletionRequest, most: int) -> None:
    """Raises BadRequest for more answers than one request may ask for: it holds one place, whatever it asks."""
    prompts = request.prompts if isinstance(request, CompletionRequest) else 1
    choices = prompts * max(request.n or 1, 1)
    if choices > most:
        raise BadRequest(
            f"{choices} answers in one request, and at most {most} are allowed (max_choices); send several "
            "requests",
            param="prompt" if prompts > most else "n",
        )


def _refuse_unbuilt(rag: RagOptions) -> None:
    if rag.filters is not None:
        raise BadRequest("rag.filters is not supported yet", param="rag.filters")


def _is_file_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "file_search"


def _file_search(tools: Sequence[Any]) -> FileSearchTool | None:
    found = [(index, tool) for index, tool in enumerate(tools) if _is_file_search(tool)]
    if len(found) > 1:
        raise BadRequest("give file_search once; it takes several vector_store_ids", param="tools")
    for index, tool in found:
        try:
            return FileSearchTool.model_validate(
                {key: value for key, value in tool.items() if value is not None}
            )
        except ValidationError as error:
            raise BadRequest.of(error, prefix=f"tools.{index}") from None
    return None


def _choose_stores(
    tool: FileSearchTool | None,
    rag: RagOptions,
    headers: Mapping[str, str],
    alias_store: str | None,
    default_store: str | None,
) -> tuple[tuple[str, ...], str | None]:
    """The first of WIRE section 2's five ways in that says something, and the client's field."""
    if tool is not None:
        return tuple(dict.fromkeys(tool.vector_store_ids)), "tools.vector_store_ids"
    if rag.enabled is False:
        return (), "rag.enabled"
    if rag.vector_store_ids:
        return tuple(dict.fromkeys(rag.vector_store_ids)), "rag.vector_store_ids"
    switch = headers.get("x-rag", "").strip().lower()
    if switch not in ("", "on", "off"):
        raise BadRequest("the header X-RAG takes on or off", param="X-RAG")
    if switch == "off" and rag.enabled is None:
        return (), "X-RAG"
    named = [ref.strip() for ref in headers.get("x-rag-vector-store", "").split(",")]
    if refs := tuple(dict.fromkeys(ref for ref in named if ref)):
        return refs, "X-RAG-Vector-Store"
    # Whoever says no more than on is above an alias that says off, but leaves the choice to one that names a store.
    on = rag.enabled or switch == "on"
    if alias_store == NO_STORE:
        if not on:
            return (), "model"
    elif alias_store is not None:
        return (alias_store,), "model"
    if default_store is not None:
        return (default_store,), None
    if on:
        raise BadRequest(
            "no store to search: name one in rag.vector_store_ids, or set default_store",
            param="rag.vector_store_ids",
        )
    return (), None


def _top_k(
    tool: FileSearchTool | None, rag: RagOptions, headers: Mapping[str, str], default: int
) -> int:
    if tool is not None and tool.max_num_results is not None:
        return tool.max_num_results
    if rag.max_num_results is not None:
        return rag.max_num_results
    header = headers.get("x-rag-top-k", "").strip()
    if not header:
        return default
    top_k = int(header) if re.fullmatch("[0-9]{1,2}", header) else 0
    if not 1 <= top_k <= 50:
        raise BadRequest("the header X-RAG-Top-K takes a number from 1 to 50", param="X-RAG-Top-K")
    return top_k


def _answer_tokens(request: ChatRequest, reserve: int) -> int:
    limit = request.answer_limit
    return reserve if limit is None else max(limit, 0)

"""The use case, and the only place where retrieval meets an engine: a question becomes a grounded answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

from retrieval.errors import DeadlineExceeded, IndexMissing, RetrievalError
from retrieval.pack import pack
from retrieval.remember import CachedRetriever
from retrieval.trace import Trace
from retrieval.types import Candidate, Drop, Passage, Query, Retrieval
from server import receipts, weave
from server.adopted import Indexes
from server.answers import Answers
from server.auth import Caller
from server.catalog import AmbiguousStore, Catalog, EmbedderConflict, Store, StoreNotFound
from server.conversation import Block, Blocks, Conversations, replay, sources_of, tokens_of
from server.engine.base import (
    Engine,
    EngineDead,
    EngineError,
    EngineRejected,
    EngineUnreachable,
    Events,
    choices_of,
    is_chat,
)
from server.errors import AmbiguousName, NoSuchStore, RetrievalFailed
from server.inject import Breaker, inject_into, render_block, render_source
from server.plan import Defaults, Models, Plan, engine_body, plan, text_body
from server.queries import tail_of
from server.receipts import Receipt
from server.telemetry.recorder import Recording
from server.weave_text import NOTHING, TextWeaver, weave_text
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

log = logging.getLogger(__name__)

#: What is said where `on_empty: refuse` finds nothing to answer from.
REFUSAL = "The documents hold nothing about this."
#: What of a question is searched for. Embedders read some hundred tokens; tokenizing megabytes would keep the
#: one embedding thread from everyone else for seconds.
MAX_QUERY_CHARACTERS = 20_000
#: Joining texts can cost a token at each seam that counting them apart does not see.
SEAM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class GroundingSettings:
    """What grounding needs to know beside the request."""

    defaults: Defaults
    min_similarity: float
    timeout_seconds: float
    sticky_context_tokens: int


@dataclass(slots=True)
class Prepared:
    """A request ready for the engine: what it asked, what it was given, and the body to send.

    `bare` is the body without context. Not frozen: an engine that counts otherwise than we estimated may
    refuse the context, which is then taken out before anything was said; and an engine that cannot answer may
    give way to the other one of its route. `fell_from` is then why.
    """

    plan: Plan
    body: Mapping[str, Any]
    bare: Mapping[str, Any]
    completion_id: str
    recording: Recording
    fell_from: EngineError | None = None

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


@dataclass(frozen=True, slots=True)
class Room:
    """A request with its conversation's earlier sources, and how many prompt tokens are free for more."""

    body: dict[str, Any]
    tokens: int
    earlier: Blocks = ()

    def replayed(self, receipt: Receipt, trace: Trace) -> Receipt:
        """The receipt of a question for which nothing was found yet."""
        if not self.earlier:
            return receipt
        trace.cached.append("conversation")
        tokens, sources = tokens_of(self.earlier), sources_of(self.earlier)
        return replace(receipt, sources=sources, found=(), context_tokens=tokens)


@dataclass(frozen=True, slots=True)
class Packed:
    """What a question gets: its block, unless all stands in the prompt already; `found` as in Receipt, with scores."""

    block: Block | None
    found: tuple[int, ...]
    scores: tuple[float, ...]
    dropped: tuple[Drop, ...]

    @property
    def over_budget(self) -> bool:
        return any(drop.reason == "over_budget" for drop in self.dropped)


class Grounding:
    """Plans, retrieves, packs and injects; then hands to the engine and weaves what comes back."""

    def __init__(
        self,
        engine: Engine,
        retriever: CachedRetriever,
        catalog: Catalog,
        conversations: Conversations,
        answers: Answers,
        settings: GroundingSettings,
        indexes: Indexes,
    ) -> None:
        self._engine = engine
        self._retriever = retriever
        self._catalog = catalog
        self._conversations = conversations
        self._answers = answers
        self._settings = settings
        self._indexes = indexes
        self._breaker = Breaker(engine.special_tokens)

    async def prepare(
        self,
        body: Mapping[str, Any],
        request: ChatRequest | CompletionRequest,
        headers: Mapping[str, str],
        models: Models,
        caller: Caller,
        link: Callable[[Passage], str],
        recording: Recording,
    ) -> Prepared:
        """Everything before the engine.

        Raises BadRequest, ModelNotFound, NoSuchStore (also for another tenant's), RetrievalFailed.
        """
        trace = recording.trace
        with trace.stage("plan"):
            planned, fell_from = self._reachable(
                plan(request, headers, models, self._settings.defaults)
            )
            chat = isinstance(request, ChatRequest)
            to_engine = (engine_body if chat else text_body)(body, planned)
            stores = await self._stores(planned, caller)
        _salt(to_engine, caller)
        bare = to_engine
        receipt = Receipt("off", link, route=planned.route)
        if planned.searches:
            receipt = Receipt(
                "miss",
                link,
                question=planned.question,
                also=tuple(more.text for more in planned.also),
                include_text=planned.include_text,
                footer=planned.footer,
                route=planned.route,
            )
            try:
                several = not chat and isinstance(to_engine["prompt"], list)
                ground = self._ground_each if several else self._ground
                receipt, to_engine = await ground(planned, stores, receipt, to_engine, trace)
            except RetrievalFailed:
                recording.grounded_in(replace(receipt, status="degraded"))
                raise
        recording.grounded_in(receipt)
        return Prepared(planned, to_engine, bare, recording.completion_id, recording, fell_from)

    def _reachable(self, planned: Plan) -> tuple[Plan, EngineError | None]:
        """The plan for an engine that is not known to be down, and why the first choice was given up."""
        if planned.route is None:
            return planned, None
        error = self._down(planned.route.model)
        if error is None or self._down(planned.route.other) is not None:
            return planned, None
        return planned.fallen_back(), error

    def _down(self, model: str) -> EngineError | None:
        """Why the engine of this model is known not to answer now."""
        try:
            self._engine.answering(model).check_health()
        except (EngineUnreachable, EngineDead) as error:
            return error
        return None

    async def _stores(self, planned: Plan, caller: Caller) -> tuple[Store, ...]:
        if not planned.searches:
            return ()
        try:
            return tuple(
                [await self._catalog.find_store(caller.tenant, ref) for ref in planned.store_refs]
            )
        except StoreNotFound as error:
            if planned.chosen_in is not None:
                raise NoSuchStore(str(error), param=planned.chosen_in) from error
            return ()  # the server's default store: not made yet, or another tenant's
        except AmbiguousStore as error:
            raise AmbiguousName(str(error), param=planned.chosen_in) from error

    async def _ground_each(
        self,
        planned: Plan,
        stores: tuple[Store, ...],
        receipt: Receipt,
        body: dict[str, Any],
        trace: Trace,
    ) -> tuple[Receipt, dict[str, Any]]:
        """A text completion's prompts side by side, each with its own question and its own sources."""
        work = []
        for prompt in body["prompt"]:
            asked = replace(planned, question=tail_of(prompt))
            mine = replace(receipt, question=asked.question)
            one = self._ground(asked, stores, mine, {**body, "prompt": prompt}, trace)
            work.append(asyncio.ensure_future(one))
        try:
            done = await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
        prompts = [grounded["prompt"] for _, grounded in done]
        return receipts.summed(receipt, [part for part, _ in done]), {**body, "prompt": prompts}

    async def _ground(
        self,
        planned: Plan,
        stores: tuple[Store, ...],
        receipt: Receipt,
        body: dict[str, Any],
        trace: Trace,
    ) -> tuple[Receipt, dict[str, Any]]:
        if not stores:
            return replace(receipt, reason="no_store"), body
        if not planned.question:
            return replace(receipt, reason="empty_query"), body
        scope = self._state(planned, stores)
        earlier: Blocks = ()
        if planned.sticky and scope is not None and planned.question_index:
            earlier = self._conversations.recall(scope, body["messages"], planned.question_index)
        counting = asyncio.ensure_future(self._fit(planned, body, earlier))
        try:
            retrieval = await self._retrieve(planned, stores, trace)
        except RetrievalError as error:
            receipt = self._degraded(planned, receipt, error)
            room = await counting
            return room.replayed(receipt, trace), room.body
        else:
            room = await counting
        finally:
            counting.cancel()
        if reason := self._miss(retrieval):
            return room.replayed(replace(receipt, reason=reason), trace), room.body
        with trace.stage("pack"):
            # Tokenizing takes milliseconds that the other streams should not wait for.
            packed = await asyncio.to_thread(self._pack, planned, retrieval, room)
            if room.earlier and packed.over_budget:
                # Earlier sources may stay as long as this question's own lose nothing by it.
                alone = await self._fit(planned, body, ())
                anew = await asyncio.to_thread(self._pack, planned, retrieval, alone)
                if anew.scores > packed.scores:
                    room, packed = alone, anew
        receipt = room.replayed(replace(receipt, dropped=packed.dropped), trace)
        if not packed.found:
            low = all(drop.reason == "below_threshold" for drop in packed.dropped)
            return replace(receipt, reason="below_threshold" if low else "no_room"), room.body
        blocks = room.earlier if packed.block is None else (*room.earlier, packed.block)
        receipt = replace(
            receipt,
            status="hit",
            sources=sources_of(blocks),
            found=packed.found,
            context_tokens=tokens_of(blocks),
        )
        if packed.block is None:
            return receipt, room.body
        with trace.stage("inject"):
            injected = inject_into(room.body, packed.block.index, packed.block.text)
        if planned.sticky and scope is not None:
            self._conversations.remember(scope, body["messages"], packed.block.index, blocks)
        return receipt, injected

    def _state(self, planned: Plan, stores: tuple[Store, ...]) -> Hashable | None:
        """What a conversation's earlier sources depend on beside its messages; None: not to be remembered."""
        state = self._retriever.state([store.index_name for store in stores])
        if state is None:
            return None
        of_stores = tuple((store.tenant, store.id, store.version) for store in stores)
        return (planned.engine_model, of_stores, state)

    def _miss(self, retrieval: Retrieval) -> str | None:
        """Why nothing that was found is good enough; None if something is."""
        if not retrieval.candidates:
            return "no_hits"
        best = retrieval.best_similarity
        if best is not None and best < self._settings.min_similarity:
            return "below_similarity"
        return None

    async def _retrieve(self, planned: Plan, stores: tuple[Store, ...], trace: Trace) -> Retrieval:
        for store in stores:
            try:
                await self._indexes.ready(store, self._settings.timeout_seconds)
            except EmbedderConflict as conflict:
                raise IndexMissing(str(conflict)) from conflict
        text = planned.question[:MAX_QUERY_CHARACTERS]
        also = tuple(replace(more, text=more.text[:MAX_QUERY_CHARACTERS]) for more in planned.also)
        names = tuple(store.index_name for store in stores)
        query = Query(text, names, planned.top_k, also, planned.weights)
        # The version moves once more when an ingest has swept what it replaced out of the dense hits.
        scope = tuple((store.tenant, store.version) for store in stores)
        return await self._retriever.retrieve(
            query, trace, scope=scope, timeout_seconds=self._settings.timeout_seconds
        )

    def _degraded(self, planned: Plan, receipt: Receipt, error: RetrievalError) -> Receipt:
        log.warning("retrieval failed: %s", error)
        if planned.on_error == "fail":
            why = (
                "the store must be rebuilt first (`groundwire reindex`)"
                if isinstance(error, IndexMissing)
                else "the server's log says why"
            )
            raise RetrievalFailed(
                "retrieval failed, and on_error is `fail` (in the request's `rag`, or in the server's settings); "
                f"{why}"
            ) from error
        reason = "timeout" if isinstance(error, DeadlineExceeded) else "unavailable"
        return replace(receipt, status="degraded", reason=reason)

    async def _fit(self, planned: Plan, body: dict[str, Any], earlier: Blocks) -> Room:
        """The request with the conversation's earlier sources, if they fit, and what is free beside them."""
        if earlier and tokens_of(earlier) <= self._settings.sticky_context_tokens:
            replayed = {**body, "messages": replay(body["messages"], earlier)}
            free = await self._free(planned, replayed)
            if free is not None and free >= 0:
                return Room(replayed, min(free, planned.max_context_tokens), earlier)
        free = await self._free(planned, body)
        return Room(body, min(free or 0, planned.max_context_tokens))

    async def _free(self, planned: Plan, body: Mapping[str, Any]) -> int | None:
        """Prompt tokens free for sources: never so many that the client's answer gets shorter."""
        try:
            prompt = await self._engine.count_tokens(body)
        except EngineRejected:
            return None  # the engine will say what is wrong with the request, in its own words
        engine = self._engine.answering(planned.engine_model)
        return engine.max_model_len - prompt - planned.answer_tokens

    def _pack(self, planned: Plan, retrieval: Retrieval, room: Room) -> Packed:
        # Twice what is asked for, as some are duplicates or too long.
        candidates = retrieval.candidates[: retrieval.query.enough]
        known = {c.passage.id: index for index, c in enumerate(sources_of(room.earlier))}
        engine = self._engine.answering(planned.engine_model)

        def tokens(text: str) -> int:
            return engine.count_text([text])[0] + SEAM_TOKENS

        def cost(candidate: Candidate) -> int:
            if candidate.passage.id in known:
                return 0
            # The number's own width changes nothing that matters: two digits cost what one does, or one more.
            return tokens(render_source(candidate.passage, 10, self._breaker))

        context = pack(
            candidates,
            cost,
            budget_tokens=room.tokens,
            frame_tokens=tokens(render_block([])),
            max_sources=planned.top_k,
            score_threshold=planned.score_threshold,
        )
        # By place and not by score: the same set is the same prompt, which the engine may have seen before.
        new = sorted(
            (c for c in context.sources if c.passage.id not in known), key=lambda c: c.passage.place
        )
        numbers = {**known, **{c.passage.id: i for i, c in enumerate(new, start=len(known))}}
        found = tuple(numbers[c.passage.id] for c in context.sources)
        scores = tuple(c.score for c in context.sources)
        if not new:
            return Packed(None, found, scores, context.dropped)
        rendered = [render_source(c.passage, numbers[c.passage.id] + 1, self._breaker) for c in new]
        assert planned.question_index is not None
        block = Block(planned.question_index, render_block(rendered), tuple(new), context.tokens)
        return Packed(block, found, scores, context.dropped)

    async def complete(self, prepared: Prepared) -> bytes | dict[str, Any]:
        """The whole answer: the engine's bytes where retrieval was off, else a body with its sources."""
        recording = prepared.recording
        if self._refuses(prepared):
            _unrouted(prepared)
            raw = self._refusal(prepared)
        else:
            try:
                raw = await self._answers.complete(
                    self._engine, prepared.body, prepared.completion_id, recording.trace
                )
            except (EngineRejected, EngineUnreachable, EngineDead) as error:
                await self._make_ready_again(prepared, error)
                return await self.complete(prepared)
            await self._finished(prepared)
        model = prepared.plan.model
        if not prepared.grounded:
            return weave.rename(raw, model)
        with recording.trace.stage("weave"):
            timings, receipt = recording.trace.timings_ms(), prepared.receipt
            if is_chat(prepared.body):
                return weave.weave(raw, receipt, model=model, timings_ms=timings)
            return weave_text(raw, receipt, model=model, timings_ms=timings, echoed=prepared.echoed)

    async def stream(
        self, prepared: Prepared, stack: AsyncExitStack
    ) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
        """The answer's events, once the engine has accepted; and the keep-alive event, if it has one.

        `stack` aborts the engine's work when it closes: nobody may ever begin to read the events.
        """
        if self._refuses(prepared):
            _unrouted(prepared)
            events: Events = _refusal_events(prepared)
        else:
            try:
                events = await self._answers.stream(
                    self._engine, prepared.body, prepared.completion_id, prepared.recording.trace
                )
            except (EngineRejected, EngineUnreachable, EngineDead) as error:
                await self._make_ready_again(prepared, error)
                return await self.stream(prepared, stack)
        stack.push_async_callback(events.aclose)
        if not prepared.grounded:
            return self._plain(prepared, events), None
        head: dict[str, Any] = {
            "completion_id": prepared.completion_id,
            "created": int(time.time()),
            "model": prepared.plan.model,
            "choices": 1 if self._refuses(prepared) else choices_of(prepared.body),
        }
        weaver = (
            weave.Weaver(prepared.receipt, **head)
            if is_chat(prepared.body)
            else TextWeaver(prepared.receipt, **head, echoed=prepared.echoed)
        )
        return self._woven(prepared, events, weaver), weaver.keep_alive()

    async def _make_ready_again(self, prepared: Prepared, error: EngineError) -> None:
        """Change the request so that another try may help, before anything was said.

        Raises `error` where nothing may; after a fall back, what it fell from: what the other engine refuses
        is not the client's mistake.
        """
        if isinstance(error, EngineRejected):
            if error.code != "context_length_exceeded" or prepared.body is prepared.bare:
                raise prepared.fell_from or error
            _without_context(prepared)
            return
        route = prepared.plan.route
        if route is None or prepared.fell_from or self._down(route.other):
            raise prepared.fell_from or error
        log.warning("%s; %s answers in place of %s", error, route.other, route.model)
        # Its traceback holds this request, which would hold it: neither would go before the collector comes.
        prepared.fell_from = error.with_traceback(None)
        await self._fall_back(prepared)

    async def _fall_back(self, prepared: Prepared) -> None:
        """Address the request to the other engine; its context stays if it has room there."""
        planned = prepared.plan = prepared.plan.fallen_back()
        grounded = prepared.body is not prepared.bare
        prepared.bare = {**prepared.bare, "model": planned.engine_model}
        body = {**prepared.body, "model": planned.engine_model}
        prepared.body = body if grounded else prepared.bare
        prepared.recording.grounded_in(replace(prepared.receipt, route=planned.route))
        if grounded:
            free = [await self._free(planned, one) for one in _one_by_one(body)]
            if any(tokens is None or tokens < 0 for tokens in free):
                _without_context(prepared)

    async def _plain(self, prepared: Prepared, events: Events) -> AsyncGenerator[bytes, None]:
        renamer = weave.Renamer(prepared.plan.model)
        async with aclosing(self._watched(prepared, events)) as watched:
            async for raw in watched:
                yield renamer.feed(raw)

    async def _woven(
        self, prepared: Prepared, events: Events, weaver: weave.Weaver | TextWeaver
    ) -> AsyncGenerator[bytes, None]:
        recording = prepared.recording
        yield weaver.opening(recording.trace.timings_ms())
        weaving = 0.0
        try:
            async with aclosing(self._watched(prepared, events)) as watched:
                async for raw in watched:
                    start = time.perf_counter()
                    out = weaver.feed(raw)
                    weaving += time.perf_counter() - start
                    if out:
                        yield out
        finally:
            recording.trace.record("weave", weaving)

    async def _watched(self, prepared: Prepared, events: Events) -> AsyncGenerator[bytes, None]:
        """The engine's events; notes the first token, turns a failure into the stream's last event."""
        recording = prepared.recording
        try:
            async for raw in events:
                if raw.startswith(weave.ERROR):
                    recording.failed("rejected" if weave.is_refusal(raw) else "error")
                    yield weave.error_event(raw)
                    return
                if not recording.has_token and b'"role"' not in raw:
                    recording.first_token()
                if raw == weave.DONE:
                    # Before the client hears the end, so that what it reads next is already counted.
                    await self._finished(prepared)
                yield raw
        finally:
            await events.aclose()

    async def _finished(self, prepared: Prepared) -> None:
        timings = self._engine.timings(prepared.completion_id)
        if timings is None:
            # In a very full step vLLM lets answers go before it has told of them all: one turn of the loop later.
            await asyncio.sleep(0)
            timings = self._engine.timings(prepared.completion_id)
        prepared.recording.engine_finished(timings)

    def _refuses(self, prepared: Prepared) -> bool:
        return prepared.plan.on_empty == "refuse" and prepared.receipt.status in (
            "miss",
            "degraded",
        )

    def _refusal(self, prepared: Prepared) -> bytes:
        return weave.refusal(
            REFUSAL,
            chat=is_chat(prepared.body),
            completion_id=prepared.completion_id,
            created=int(time.time()),
            model=prepared.plan.model,
        )


async def _refusal_events(prepared: Prepared) -> AsyncGenerator[bytes, None]:
    head = {"id": prepared.completion_id, "object": "chat.completion.chunk"}
    said = {"delta": {"content": REFUSAL}} if is_chat(prepared.body) else {"text": REFUSAL}
    choice = {"index": 0, **said, "finish_reason": "stop"}
    yield weave.event({**head, "choices": [choice]})
    if (prepared.body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        yield weave.event({**head, "choices": [], "usage": usage})
    yield weave.DONE


def _one_by_one(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A request for each prompt of a grounded text completion; any other is one already."""
    if is_chat(body) or isinstance(body["prompt"], str):
        return [body]
    return [{**body, "prompt": prompt} for prompt in body["prompt"]]


def _without_context(prepared: Prepared) -> None:
    """Take the context out again: the engine has no room for it."""
    prepared.body = prepared.bare
    prepared.recording.grounded_in(receipts.without_sources(prepared.receipt, "no_room"))


def _unrouted(prepared: Prepared) -> None:
    """No model answers, whichever would have."""
    prepared.recording.grounded_in(replace(prepared.receipt, route=None))


def _salt(body: dict[str, Any], caller: Caller) -> None:
    """Keep one tenant's prefix cache apart from another's; a salt of the client's divides it further."""
    if caller.cache_salt is not None:
        body["cache_salt"] = f"{caller.cache_salt}{body.get('cache_salt') or ''}"

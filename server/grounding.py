"""The use case, and the only place where retrieval meets an engine: a question gets its sources."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retrieval.deadline import deadline
from retrieval.errors import DeadlineExceeded, IndexMissing, RetrievalError, StoreUnavailable
from retrieval.pack import pack
from retrieval.remember import CachedRetriever
from retrieval.trace import Trace
from retrieval.types import Candidate, Drop, Passage, Query, Retrieval
from server import receipts
from server.adopted import Indexes
from server.auth import Caller
from server.catalog import (
    AmbiguousStore,
    Catalog,
    CatalogUnavailable,
    EmbedderConflict,
    Store,
    StoreNotFound,
)
from server.catalog.catalog import MAX_NAME_CHARS
from server.conversation import Block, Blocks, Conversations, replay, sources_of, tokens_of
from server.engine.base import Engine, EngineError, trouble
from server.errors import AmbiguousName, NoSuchStore, RetrievalFailed
from server.inject import Breaker, inject_into, render_block, render_source
from server.plan import Defaults, Models, Plan, engine_body, plan, text_body
from server.prepared import Prepared, free_beside, prompt_tokens
from server.queries import MAX_QUERY_CHARACTERS, tail_of
from server.receipts import Receipt, Searched
from server.telemetry.recorder import Recording
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

log = logging.getLogger(__name__)

#: Prompts of one request that are grounded side by side: its threads and tokenizers are everyone's.
PROMPTS_AT_ONCE = 4
LOOK_UP_LATE = "the catalog did not say in time which stores are meant (retrieval_timeout_seconds)"
#: Joining texts can cost a token at each seam that counting them apart does not see.
SEAM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class GroundingSettings:
    """What grounding needs to know beside the request."""

    defaults: Defaults
    min_similarity: float
    timeout_seconds: float
    sticky_context_tokens: int


@dataclass(frozen=True, slots=True)
class Room:
    """A request with its conversation's earlier sources, and how many prompt tokens are free for more.

    `counted` is what its prompt takes; None: not counted.
    """

    body: dict[str, Any]
    tokens: int
    counted: int | None
    earlier: Blocks = ()

    def replayed(self, receipt: Receipt, trace: Trace) -> Receipt:
        """The receipt of a question for which nothing was found yet."""
        receipt = replace(receipt, counted_tokens=self.counted, budget_tokens=self.tokens)
        if not self.earlier:
            return receipt
        trace.cached.append("conversation")
        tokens, sources = tokens_of(self.earlier), sources_of(self.earlier)
        return replace(
            receipt, sources=sources, found=(), context_tokens=tokens, earlier_tokens=tokens
        )


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
    """Plans, retrieves, packs and injects: everything before the engine answers."""

    def __init__(
        self,
        engine: Engine,
        retriever: CachedRetriever,
        catalog: Catalog,
        conversations: Conversations,
        settings: GroundingSettings,
        indexes: Indexes,
    ) -> None:
        self._engine = engine
        self._retriever = retriever
        self._catalog = catalog
        self._conversations = conversations
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
        until = asyncio.get_running_loop().time() + self._settings.timeout_seconds
        stores: tuple[Store, ...] = ()
        away: RetrievalError | None = None
        try:
            with trace.stage("plan"):
                planned, fell_from = self._reachable(
                    plan(request, headers, models, self._settings.defaults)
                )
                chat = isinstance(request, ChatRequest)
                to_engine = (engine_body if chat else text_body)(body, planned)
                stores = await self._stores(planned, caller, until)
        except RetrievalError as error:
            # Its traceback holds this frame, which would hold it.
            away = error.with_traceback(None)
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
                stores=tuple(Searched(store.id, store.name, store.version) for store in stores),
                route=planned.route,
            )
            try:
                several = not chat and isinstance(to_engine["prompt"], list)
                if away is not None:
                    receipt = self._degraded(planned, receipt, away)
                else:
                    ground = self._ground_each if several else self._ground
                    receipt, to_engine = await ground(
                        planned, stores, receipt, to_engine, trace, until
                    )
            except RetrievalFailed:
                recording.grounded_in(replace(receipt, status="degraded"))
                raise
        recording.grounded_in(receipt)
        return Prepared(planned, to_engine, bare, recording.completion_id, recording, fell_from)

    def _reachable(self, planned: Plan) -> tuple[Plan, EngineError | None]:
        """The plan for an engine that is not known to be down, and why the first choice was given up."""
        if planned.route is None:
            return planned, None
        error = trouble(self._engine, planned.route.model)
        if error is None or trouble(self._engine, planned.route.other) is not None:
            return planned, None
        return planned.fallen_back(), error

    async def _stores(self, planned: Plan, caller: Caller, until: float) -> tuple[Store, ...]:
        """The stores to search. Raises RetrievalError where the catalog does not answer, or not by `until`."""
        if not planned.searches:
            return ()
        find, tenant = self._catalog.find_store, caller.tenant
        try:
            async with deadline(until, LOOK_UP_LATE):
                return tuple([await find(tenant, ref) for ref in planned.store_refs])
        except CatalogUnavailable as error:
            raise StoreUnavailable(str(error)) from error
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
        until: float,
    ) -> tuple[Receipt, dict[str, Any]]:
        """A text completion's prompts side by side, each with its own question and its own sources.

        Each is a retrieval of its own, with all the time that the look-up of the stores has left: those that wait
        for their turn lose nothing by it.
        """
        turn = asyncio.Semaphore(PROMPTS_AT_ONCE)
        now = asyncio.get_running_loop().time
        left_seconds = until - now()

        async def ground(prompt: str) -> tuple[Receipt, str]:
            asked = replace(planned, question=tail_of(prompt))
            mine = replace(receipt, question=asked.question)
            async with turn:
                got, grounded = await self._ground(
                    asked, stores, mine, {**body, "prompt": prompt}, trace, now() + left_seconds
                )
            return got, grounded["prompt"]

        work = [asyncio.ensure_future(ground(prompt)) for prompt in body["prompt"]]
        try:
            done = await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
        prompts = [prompt for _, prompt in done]
        whole = receipts.summed(receipt, [part for part, _ in done])
        return whole, body if prompts == body["prompt"] else {**body, "prompt": prompts}

    async def _ground(
        self,
        planned: Plan,
        stores: tuple[Store, ...],
        receipt: Receipt,
        body: dict[str, Any],
        trace: Trace,
        until: float,
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
            retrieval = await self._retrieve(planned, stores, trace, until)
        except RetrievalError as error:
            receipt = self._degraded(planned, receipt, error)
            room = await counting
            return room.replayed(receipt, trace), room.body
        else:
            room = await counting
        finally:
            counting.cancel()
        receipt = replace(
            receipt,
            candidates=retrieval.candidates,
            best_similarity=retrieval.best_similarity,
        )
        if reason := self._miss(retrieval):
            dropped = tuple(Drop(candidate, reason) for candidate in retrieval.candidates)
            receipt = replace(receipt, reason=reason, dropped=dropped)
            return room.replayed(receipt, trace), room.body
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
            reasons = {drop.reason for drop in packed.dropped}
            low = reasons <= {"below_threshold", "not_considered"}
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
        if planned.sticky and scope is not None and not planned.dry_run:
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

    async def _retrieve(
        self, planned: Plan, stores: tuple[Store, ...], trace: Trace, until: float
    ) -> Retrieval:
        for store in stores:
            try:
                await self._indexes.ready(store, until)
            except EmbedderConflict as conflict:
                raise IndexMissing(str(conflict)) from conflict
            except CatalogUnavailable as error:
                raise StoreUnavailable(str(error)) from error
        text = planned.question[:MAX_QUERY_CHARACTERS]
        also = tuple(replace(more, text=more.text[:MAX_QUERY_CHARACTERS]) for more in planned.also)
        names = tuple(store.index_name for store in stores)
        query = Query(text, names, planned.top_k, also, planned.weights)
        # The version moves once more when an ingest has swept what it replaced out of the dense hits.
        scope = tuple((store.tenant, store.version) for store in stores)
        return await self._retriever.retrieve(query, trace, scope=scope, until=until)

    def _degraded(self, planned: Plan, receipt: Receipt, error: RetrievalError) -> Receipt:
        # Where the catalog did not say which stores are meant, what the client calls them.
        called = (repr(ref[:MAX_NAME_CHARS]) for ref in planned.store_refs)
        searched = ", ".join([store.id for store in receipt.stores] or called)
        log.warning("retrieval failed: %s (stores: %s)", error, searched)
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
            counted = await prompt_tokens(self._engine, replayed)
            if counted is not None and (free := self._free(planned, counted)) >= 0:
                return Room(replayed, min(free, planned.max_context_tokens), counted, earlier)
        counted = await prompt_tokens(self._engine, body)
        free = self._free(planned, counted)
        return Room(body, min(free, planned.max_context_tokens), counted)

    def _free(self, planned: Plan, counted: int | None) -> int:
        return 0 if counted is None else free_beside(self._engine, planned, counted)

    def _pack(self, planned: Plan, retrieval: Retrieval, room: Room) -> Packed:
        # Twice what is asked for, as some are duplicates or too long.
        enough = retrieval.query.enough
        candidates, beyond = retrieval.candidates[:enough], retrieval.candidates[enough:]
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
        dropped = (*context.dropped, *(Drop(c, "not_considered") for c in beyond))
        if not new:
            return Packed(None, found, scores, dropped)
        rendered = [render_source(c.passage, numbers[c.passage.id] + 1, self._breaker) for c in new]
        assert planned.question_index is not None
        block = Block(planned.question_index, render_block(rendered), tuple(new), context.tokens)
        return Packed(block, found, scores, dropped)


def _salt(body: dict[str, Any], caller: Caller) -> None:
    """Keep one tenant's prefix cache apart from another's; a salt of the client's divides it further."""
    if caller.cache_salt is not None:
        body["cache_salt"] = f"{caller.cache_salt}{body.get('cache_salt') or ''}"

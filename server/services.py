"""Builds and owns the long-lived parts: engine, retriever, catalog, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from retrieval.cache import Bounds, Cache
from retrieval.embed import QueryBatcher, WholeTexts
from retrieval.lexical import LexicalIndex
from retrieval.pipeline import (
    Dense,
    DenseSearch,
    FusionSettings,
    QueryEmbedder,
    RerankSettings,
    Retriever,
)
from retrieval.remember import CachedEmbedder, CachedRetriever, retrieval_bytes, vector_bytes
from retrieval.rerank import Reranker, open_reranker
from retrieval.search import VectorStore, connect
from server.adopted import Indexes, QuerySide
from server.answering import Answering
from server.answers import Answers, answer_bytes
from server.auth import Keys, Links, signing_key
from server.catalog import Catalog
from server.checkup import Checkup
from server.conversation import Conversations, blocks_bytes
from server.embedding import open_embedder
from server.engine.base import Engine, EngineDead, EngineRejected, EngineUnreachable, ModelCard
from server.engine.pool import pooled
from server.grounding import Grounding, GroundingSettings
from server.limits import Admission, Limits
from server.plan import Defaults, Models
from server.queries import FollowUpWeights
from server.receipt_ring import ReceiptRing
from server.routing import AUTO, Rule
from server.settings import (
    BUNDLED_CHAT_MODEL,
    Settings,
    SettingsError,
    UpstreamSettings,
    child_environment,
)
from server.telemetry.metrics import CacheCounts, Metrics, new_registry
from server.token_ids import Vocabulary, check_name, load_vocabulary

log = logging.getLogger(__name__)

#: How often the engine is asked whether it lives; vLLM tells nobody by itself.
HEALTH_SECONDS = 0.5
#: Turns that are remembered; the bytes are the tighter bound.
MAX_CONVERSATIONS = 100_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Services:
    """Everything a request needs, built once. `dead` is set when the engine has died for good.

    `engine` is the `engines`, by their names, as one.
    """

    settings: Settings
    engine: Engine
    engines: Mapping[str, Engine]
    retriever: CachedRetriever
    texts: WholeTexts
    vocabulary: Vocabulary
    vectors: VectorStore
    lexical: LexicalIndex
    indexes: Indexes
    catalog: Catalog
    grounding: Grounding
    answering: Answering
    models: Models
    metrics: Metrics
    admission: Admission
    keys: Keys
    links: Links
    checkup: Checkup
    receipts: ReceiptRing
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    def deadline(self) -> float | None:
        """When a request that starts now is cut off, in the event loop's time; None is never."""
        seconds = self.settings.request_timeout_seconds
        return None if seconds is None else asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def open_services(
    settings: Settings, progress: Progress = lambda _: None, engine: Engine | None = None
) -> AsyncIterator[Services]:
    """Open all parts, smallest first, so that a mistake shows before the minute that an engine takes.

    `engine` replaces the configured one. Raises whatever a part raises; what was opened is closed again.
    """
    settings.make_data_dir()
    async with AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(await Catalog.open(settings.resolved_catalog_url))
        metrics = Metrics(new_registry())
        progress(
            "starting Chroma"
            if settings.chroma_url is None
            else f"using Chroma at {settings.chroma_url}"
        )
        restarted = metrics.chroma_restarts.inc
        handle = await stack.enter_async_context(
            connect(settings.data_dir, settings.chroma_url, on_restart=restarted)
        )
        progress(f"loading the embedder {settings.embedder}")
        embedder = await asyncio.to_thread(open_embedder, settings, progress)
        check_name(embedder.name)
        vocabulary = await asyncio.to_thread(load_vocabulary)
        texts = WholeTexts(embedder)
        stack.push_async_callback(texts.close)
        batcher = QueryBatcher(embedder)
        stack.push_async_callback(batcher.close)
        await batcher.embed("warm up")  # the first run compiles; no request should wait for that
        indexes = Indexes(settings, QuerySide.of(embedder, batcher))
        stack.push_async_callback(indexes.close)
        await indexes.warm(await catalog.every_store())
        reranker = await stack.enter_async_context(reranker_of(settings, progress))
        engines: Mapping[str, Engine]
        if engine is None:
            engines = await stack.enter_async_context(_open_engines(settings, progress))
        else:
            engines = {settings.engine: engine}
        engine = await pooled(engines)
        models = model_names(settings, await engine.models(), embedder.name)
        lexical = LexicalIndex(settings.data_dir / "lexical")
        retriever = cached_retriever(
            settings, metrics, batcher, handle.store, lexical, reranker, elsewhere=indexes.dense
        )
        secret = signing_key(settings.data_dir / "secret")
        services = Services(
            settings=settings,
            engine=engine,
            engines=engines,
            retriever=retriever,
            texts=texts,
            vocabulary=vocabulary,
            vectors=handle.store,
            lexical=lexical,
            indexes=indexes,
            catalog=catalog,
            grounding=Grounding(
                engine,
                retriever,
                catalog,
                conversations(settings, metrics),
                _grounding(settings),
                indexes,
            ),
            answering=Answering(engine, answers(settings, metrics)),
            models=models,
            metrics=metrics,
            admission=Admission(metrics, _limits(settings)),
            keys=Keys(settings.api_keys, secret),
            links=Links(secret, signed=bool(settings.api_keys)),
            checkup=Checkup(catalog, lexical, embedder.name, indexes.check),
            receipts=ReceiptRing(settings.receipts_kept, settings.receipts_bytes),
        )
        watch = asyncio.ensure_future(_watch(services))
        stack.callback(watch.cancel)
        looking = asyncio.ensure_future(services.checkup.watch())
        stack.callback(looking.cancel)
        yield services


@asynccontextmanager
async def reranker_of(
    settings: Settings, progress: Progress = lambda _: None
) -> AsyncIterator[Reranker | None]:
    """The configured reranker, or None. Raises RerankerError."""
    if settings.reranker is None:
        yield None
        return
    progress(f"loading the reranker {settings.reranker}")
    reranker = await asyncio.to_thread(open_reranker, settings.reranker, settings.embed_threads)
    try:
        yield reranker
    finally:
        await reranker.close()


def model_names(settings: Settings, cards: Sequence[ModelCard], embedder: str) -> Models:
    """The names that `model` may have. Raises SettingsError where `routing` does not fit the engines' models."""
    chat = tuple(card.id for card in cards)
    if settings.routing is None:
        return Models(chat, embedder, settings.model_aliases)
    rule = Rule(**settings.routing.model_dump())
    for size, model in (("small", rule.small), ("large", rule.large)):
        if model not in chat:
            raise SettingsError(
                f"routing.{size}: no engine serves {model!r}; there is {', '.join(chat)}"
            )
    if AUTO in chat:
        raise SettingsError(
            f"routing: an engine serves a model named {AUTO!r}, which routing needs"
        )
    return Models(chat, embedder, settings.model_aliases, rule)


@asynccontextmanager
async def _open_engines(
    settings: Settings, progress: Progress
) -> AsyncIterator[Mapping[str, Engine]]:
    """All engines by name, the one in this process first.

    The upstreams are opened before it, so that a mistake in one shows before the minute that vLLM takes.
    """
    async with AsyncExitStack() as stack:
        upstreams = {
            one.name: await stack.enter_async_context(_open_upstream(one, progress))
            for one in settings.engines
        }
        if settings.engine == "upstream":
            yield upstreams
            return
        own = await stack.enter_async_context(_open_engine(settings, progress))
        yield {settings.engine: own, **upstreams}


@asynccontextmanager
async def _open_engine(settings: Settings, progress: Progress) -> AsyncIterator[Engine]:
    if settings.engine == "scripted":
        from server.engine.scripted import Script, ScriptedEngine

        yield ScriptedEngine(Script(**settings.scripted))
        return
    from server.engine.vllm_engine import VllmOptions, open_vllm

    model, args = settings.model, list(settings.vllm_args)
    if model == BUNDLED_CHAT_MODEL:
        from server.bundled import chat_model_flags, prepare_chat_model

        model = str(await asyncio.to_thread(prepare_chat_model, settings.models_dir, progress))
        args = [*chat_model_flags(), *args]
    progress(f"starting vLLM with {settings.model} (a minute or two on a CPU)")
    options = VllmOptions(
        model=model,
        served_name=settings.model,
        args=args,
        tool_call_parser=settings.tool_call_parser,
        environment=child_environment(settings),
        media_domains=settings.allowed_media_domains,
    )
    async with open_vllm(options) as engine:
        progress("warming up")
        await _warm_up(engine)
        yield engine


@asynccontextmanager
async def _open_upstream(settings: UpstreamSettings, progress: Progress) -> AsyncIterator[Engine]:
    from server.engine.upstream import UpstreamOptions, open_upstream

    progress(f"using the engine {settings.name} at {settings.url}")
    fields = settings.model_dump(exclude={"api_key"})
    key = settings.api_key.get_secret_value() if settings.api_key else None
    async with open_upstream(UpstreamOptions(**fields, api_key=key)) as engine:
        yield engine


async def _warm_up(engine: Engine) -> None:
    """Run a request about as long as a grounded one: the first of that size is slow, and should be nobody's."""
    messages = [{"role": "user", "content": "Warm up. " * 100}]
    model = (await engine.models())[0].id
    try:
        await engine.complete(
            {"model": model, "messages": messages, "max_tokens": 2}, "chatcmpl-warm-up"
        )
    except EngineRejected as error:  # a model without a chat template, or with a very short context
        log.info("not warmed up: %s", error)


async def _watch(services: Services) -> None:
    while not services.dead.is_set():
        try:
            services.engine.check_health()
        except EngineDead as error:
            log.critical("%s", error)
            services.dead.set()
        except EngineUnreachable:
            pass  # `/ready` says so; it may come back
        await asyncio.sleep(HEALTH_SECONDS)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_running=settings.max_running,
        max_queued=settings.max_queued,
        max_queued_tokens=settings.max_queued_tokens,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        max_concurrent_per_key=settings.max_concurrent_per_key,
        fair=len(settings.api_keys) > 1,
    )


def fusion_settings(settings: Settings) -> FusionSettings:
    """How the settings say that rankings are made and merged; the same for the server, `search` and `eval`."""
    return FusionSettings(
        candidates=settings.candidates,
        rrf_k=settings.rrf_k,
        dense_weight=settings.dense_weight,
        lexical_weight=settings.lexical_weight,
    )


def followup_weights(settings: Settings) -> FollowUpWeights:
    """How much a follow-up's searches together with the turn before it weigh, by the settings."""
    return FollowUpWeights(settings.followup_dense_weight, settings.followup_lexical_weight)


def cached_retriever(
    settings: Settings,
    metrics: Metrics,
    embedder: QueryEmbedder,
    dense: DenseSearch,
    lexical: LexicalIndex,
    reranker: Reranker | None = None,
    *,
    elsewhere: Callable[[str], Dense | None] = lambda _: None,
) -> CachedRetriever:
    """The retriever as the settings say it is, behind its caches; `elsewhere` as in `Retriever`."""
    size, seconds = settings.cache_bytes, settings.cache_ttl_seconds
    vectors = Cache(
        Bounds(settings.embedding_cache_entries, size, seconds),
        vector_bytes,
        observer=CacheCounts(metrics, "embedding"),
    )
    remembering = CachedEmbedder(embedder, vectors)

    def remembered(index_name: str) -> Dense | None:
        found = elsewhere(index_name)
        if found is None:
            return None
        other = CachedEmbedder(found.embedder, vectors, found.key)
        return replace(found, embedder=other, known_vector=other.known)

    retriever = Retriever(
        remembering,
        dense,
        lexical,
        fusion_settings(settings),
        reranker,
        RerankSettings(settings.rerank_candidates, settings.rerank_timeout_seconds),
        known_vector=remembering.known,
        elsewhere=remembered,
    )
    cache = Cache(
        Bounds(settings.retrieval_cache_entries, size, seconds),
        retrieval_bytes,
        keeps=lambda retrieval: retrieval.whole,
        observer=CacheCounts(metrics, "retrieval"),
    )
    return CachedRetriever(retriever, lexical, cache)


def conversations(settings: Settings, metrics: Metrics) -> Conversations:
    """The memory of what each conversation was given."""
    bounds = Bounds(MAX_CONVERSATIONS, settings.cache_bytes, settings.cache_ttl_seconds)
    return Conversations(Cache(bounds, blocks_bytes, observer=CacheCounts(metrics, "conversation")))


def answers(settings: Settings, metrics: Metrics) -> Answers:
    """The memory of answers to requests that are answered the same each time."""
    bounds = Bounds(settings.answer_cache_entries, settings.cache_bytes, settings.cache_ttl_seconds)
    return Answers(Cache(bounds, answer_bytes, observer=CacheCounts(metrics, "answer")))


def _grounding(settings: Settings) -> GroundingSettings:
    return GroundingSettings(
        defaults=Defaults(
            default_store=settings.default_store,
            top_k=settings.top_k,
            max_context_tokens=settings.max_context_tokens,
            answer_reserve_tokens=settings.answer_reserve_tokens,
            on_error=settings.on_error,
            media_domains=tuple(settings.allowed_media_domains),
            sticky=settings.sticky,
            max_choices=settings.max_choices,
            followup=followup_weights(settings),
        ),
        min_similarity=settings.min_similarity,
        timeout_seconds=settings.retrieval_timeout_seconds,
        sticky_context_tokens=settings.sticky_context_tokens,
    )

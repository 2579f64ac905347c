"""Builds and owns the long-lived parts: engine, retriever, catalog, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as version_of

from retrieval.cache import Bounds, Cache
from retrieval.embed import Embedder, QueryBatcher, WholeTexts
from server.adopted import QuerySide, QuerySides
from server.answering import Answering
from server.answers import Answers, answer_bytes
from server.auth import Keys, tenants_that_ask
from server.beside import beside
from server.canary import Canary, canary_settings
from server.embedding import check_embedder, open_embedder
from server.engine.base import Engine, EngineDead, EngineUnreachable, ModelCard
from server.engine.pool import pooled
from server.engines import begin_engines
from server.handover import Handover
from server.knowledge import Parts, open_indexes, open_knowledge, open_storage
from server.limits import Admission, Limits
from server.plan import Models
from server.receipt_ring import ReceiptRing
from server.replica import Copies, Refresh, Replica, open_copies
from server.retriever import Caches, reranker_of
from server.routing import AUTO, Rule
from server.settings import SERVICE, Settings, SettingsError
from server.start import StartTrace
from server.telemetry.build import build_of
from server.telemetry.exposition import Gateway
from server.telemetry.metrics import CacheCounts, Metrics, new_registry
from server.telemetry.push import own_instance, pushing
from server.telemetry.sampling import Sampler
from server.telemetry.spans import NoTracing, Tracer
from server.token_ids import Vocabulary, check_name, load_vocabulary

log = logging.getLogger(__name__)

#: How often the engine is asked whether it lives; vLLM tells nobody by itself.
HEALTH_SECONDS = 0.5
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Services:
    """Everything that requests share, built once. `dead` is set when the engine has died for good.

    `engine` is the `engines`, by their names, as one. What depends on the index is the `handover`'s: a request
    has one version of it from start to end (`server/deps.py`).
    """

    settings: Settings
    engine: Engine
    engines: Mapping[str, Engine]
    texts: WholeTexts
    vocabulary: Vocabulary
    handover: Handover
    answering: Answering
    models: Models
    metrics: Metrics
    admission: Admission
    keys: Keys
    receipts: ReceiptRing
    tracer: Tracer = field(default_factory=NoTracing)
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    def deadline(self) -> float | None:
        """When a request that starts now is cut off, in the event loop's time; None is never."""
        seconds = self.settings.request_timeout_seconds
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    def stream_end(self) -> float | None:
        """When the answer of a stream that is asked for now ends where it is; None is never."""
        seconds = self.settings.max_stream_seconds
        return None if seconds is None else asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def open_services(
    settings: Settings,
    progress: Progress = lambda _: None,
    engine: Engine | None = None,
    refresh: Refresh | None = None,
    start: StartTrace | None = None,
) -> AsyncIterator[Services]:
    """Open all parts; what retrieval needs is opened while the engine loads its model.

    `engine` replaces the one of this process; `refresh` makes the newest state of `published_dir` visible, where that
    is a mounted volume; `start` times the steps. Raises whatever a part raises; what was opened is closed again,
    and an engine that still loads is given up.
    """
    check_signing(settings)
    metrics = Metrics(new_registry(), tenants=shown_tenants(settings))
    start = StartTrace() if start is None else start
    await asyncio.to_thread(check_embedder, settings)
    probing = await asyncio.to_thread(canary_settings, settings)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(_open_tracer(settings))
        opening = begin_engines(settings, progress, start, engine)
        ready = await stack.enter_async_context(opening)
        # What is closed when a newer version of the index has taken over, or with the rest.
        first = await stack.enter_async_context(AsyncExitStack())
        copies, version, here = await _index_directory(
            settings, refresh, progress, start, stack, first
        )
        progress(
            "starting Chroma"
            if settings.chroma_url is None
            else f"using Chroma at {settings.chroma_url}"
        )
        storage = await first.enter_async_context(open_storage(here, metrics, version, start))
        progress(f"loading the embedder {settings.embedder}")
        with start.step("embedder"):
            embedder = await asyncio.to_thread(open_embedder, settings, progress)
            check_name(embedder.name)
            vocabulary = await asyncio.to_thread(load_vocabulary)
            texts = WholeTexts(embedder)
            stack.push_async_callback(texts.close)
            sides = await stack.enter_async_context(_open_sides(settings, embedder))
        with start.step("index"):
            indexes = await first.enter_async_context(
                open_indexes(storage, sides, settings.default_store)
            )
        reranker = await stack.enter_async_context(reranker_of(settings, progress, start))
        engines = await ready()
        engine = await pooled(engines)
        models = model_names(settings, await engine.models(), embedder.name)
        parts = Parts(settings, engine, sides, reranker, Caches.of(settings, metrics), metrics)
        knowledge = await first.enter_async_context(open_knowledge(storage, indexes, parts))
        handover = Handover(knowledge, first.pop_all())
        stack.push_async_callback(handover.close)
        services = Services(
            settings=settings,
            engine=engine,
            engines=engines,
            texts=texts,
            vocabulary=vocabulary,
            handover=handover,
            answering=Answering(engine, answers(settings, metrics)),
            models=models,
            metrics=metrics,
            admission=Admission(metrics, _limits(settings)),
            keys=Keys(settings.api_keys, storage.secret),
            receipts=ReceiptRing(settings.receipts_kept, settings.receipts_bytes),
            tracer=tracer,
        )
        works = [_watch(services)]
        if copies is not None:
            works.append(Replica(copies, handover, parts).watch())
        if probing is not None:
            works.append(Canary(handover, metrics, probing).watch())
        readers = tenants_that_ask(settings.api_keys)
        sampler = Sampler(
            metrics, handover.lease, settings.metrics_stores, readers, settings.published_dir
        )
        # Before anyone is shown a page: totals that are 0 and then are not have increased, for a Prometheus.
        await sampler.attempt()
        works.append(sampler.watch())
        await stack.enter_async_context(beside(*works))
        metrics.observe_start(start.records)
        metrics.tell_build(build_of(settings, embedder.name), models.chat)
        if settings.push_url is not None:
            gateway = Gateway.parse(settings.push_url.get_secret_value(), _instance(settings))
            await stack.enter_async_context(pushing(gateway, metrics, settings.push_seconds))
        yield services


def check_signing(settings: Settings) -> None:
    """Raises SettingsError where others may serve the same stores, and each would sign links for itself alone.

    Without keys links are not signed.
    """
    shared = not settings.resolved_catalog_url.startswith("sqlite")
    if shared and settings.api_keys and settings.signing_secret is None:
        raise SettingsError(
            "signing_secret: set GROUNDWIRE_SIGNING_SECRET, the same on all servers of the catalog in catalog_url; "
            "without it the links in one server's citations are 404 at the others"
        )


def _instance(settings: Settings) -> str:
    """Read when it is needed and not with the settings: a process restored from a snapshot has another id."""
    return settings.push_instance or own_instance()


@asynccontextmanager
async def _open_tracer(settings: Settings) -> AsyncIterator[Tracer]:
    """What traces requests. Raises SettingsError where traces are wanted and cannot be sent."""
    if (url := settings.traces_url) is None:
        yield NoTracing()
        return
    try:
        from server.telemetry.tracing import Collector, open_tracing
    except ImportError as error:
        raise SettingsError(
            f"traces are to be sent to {url}, which needs `pip install 'groundwire[otel]'` ({error})"
        ) from error
    resource = {
        "service.name": SERVICE,
        "service.version": version_of("groundwire"),
        "service.instance.id": _instance(settings),
    }
    async with open_tracing(Collector(url, resource, settings.trace_ratio)) as tracer:
        yield tracer


async def _index_directory(
    settings: Settings,
    refresh: Refresh | None,
    progress: Progress,
    start: StartTrace,
    stack: AsyncExitStack,
    first: AsyncExitStack,
) -> tuple[Copies | None, int, Settings]:
    """Where the index is: our data directory, or a copy of the published version, with its number.

    `stack` and `first` close what is opened for all versions, and for this one.
    """
    if settings.published_dir is None:
        return None, 0, settings
    progress(f"copying the index published in {settings.published_dir}")
    with start.step("index_copy"):
        copies = await stack.enter_async_context(
            open_copies(settings, settings.published_dir, refresh)
        )
        version, here = await first.enter_async_context(copies.taken())
    return copies, version, here


@asynccontextmanager
async def _open_sides(settings: Settings, embedder: Embedder) -> AsyncIterator[QuerySides]:
    """The embedders of questions; the server's own has run once."""
    batcher = QueryBatcher(embedder)
    sides = QuerySides(settings, QuerySide.of(embedder, batcher))
    try:
        await batcher.embed("warm up")  # the first run compiles; no request should wait for that
        yield sides
    finally:
        await sides.close()
        await batcher.close()


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


def shown_tenants(settings: Settings) -> list[str]:
    """The tenants that have a label of their own in the metrics: the first by name."""
    return sorted(Keys(settings.api_keys, b"").tenants)[: settings.metrics_tenants]


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


def answers(settings: Settings, metrics: Metrics) -> Answers:
    """The memory of answers to requests that are answered the same each time."""
    bounds = Bounds(settings.answer_cache_entries, settings.cache_bytes, settings.cache_ttl_seconds)
    return Answers(Cache(bounds, answer_bytes, observer=CacheCounts(metrics, "answer")))

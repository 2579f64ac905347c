"""Several engines as one: each request goes to the engine that serves its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import ASGIApp

from server.engine.base import (
    NO_TRACE,
    Body,
    Engine,
    EngineError,
    EngineRejected,
    EngineTimings,
    EngineUnreachable,
    Events,
    ModelCard,
    TraceHeaders,
)


async def pooled(engines: Mapping[str, Engine]) -> Engine:
    """The engines, by their names, as one; the first is the default, and one alone stays itself.

    Raises EngineError naming both where two serve a model of the same name.
    """
    if len(engines) == 1:
        return next(iter(engines.values()))
    owners: dict[str, str] = {}
    for name, engine in engines.items():
        for card in await engine.models():
            if (other := owners.setdefault(card.id, name)) != name:
                raise EngineError(
                    f"the engines {other!r} and {name!r} both serve the model {card.id!r}; name in their "
                    "`models` which of them is to offer it"
                )
    return EnginePool(
        tuple(engines.values()), {model: engines[name] for model, name in owners.items()}
    )


class EnginePool:
    """Several engines, as an `Engine`. What is asked without a model is answered so that it holds for each."""

    def __init__(self, engines: Sequence[Engine], serving: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._serving = serving

    @property
    def max_model_len(self) -> int:
        return min(engine.max_model_len for engine in self._engines)

    @property
    def asgi_app(self) -> ASGIApp:
        # The one in this process is the first; upstreams have none to show.
        return self._engines[0].asgi_app

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset().union(*(engine.special_tokens for engine in self._engines))

    async def models(self) -> Sequence[ModelCard]:
        return [card for engine in self._engines for card in await engine.models()]

    def answering(self, model: str) -> Engine:
        if model not in self._serving:
            raise EngineRejected(f"no engine serves the model {model!r}", status=404, param="model")
        return self._serving[model]

    async def complete(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> bytes:
        return await self.answering(body["model"]).complete(body, request_id, trace_headers)

    async def stream(
        self,
        body: Body,
        request_id: str,
        trace_headers: TraceHeaders = NO_TRACE,
    ) -> Events:
        return await self.answering(body["model"]).stream(body, request_id, trace_headers)

    async def count_tokens(self, body: Body) -> int:
        return await self.answering(body["model"]).count_tokens(body)

    def count_text(self, texts: Sequence[str]) -> list[int]:
        counts = (engine.count_text(texts) for engine in self._engines)
        return [max(each) for each in zip(*counts, strict=True)]

    def timings(self, request_id: str) -> EngineTimings | None:
        told = (engine.timings(request_id) for engine in self._engines)
        return next((timings for timings in told if timings is not None), None)

    def check_health(self) -> None:
        """Raises EngineDead where one has died for good, EngineUnreachable where none answers now."""
        unreachable = []
        for engine in self._engines:
            try:
                engine.check_health()
            except EngineUnreachable as error:
                unreachable.append(str(error))
        if len(unreachable) == len(self._engines):
            raise EngineUnreachable("; ".join(unreachable))

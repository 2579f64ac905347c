"""One request's account: its trace, its receipt, how it ended; read once into the metrics at the end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect

from retrieval.trace import Trace
from server.engine.base import EngineTimings
from server.errors import INTERNAL, Draining, Overloaded, mapped
from server.plan import Plan
from server.receipts import Receipt
from server.telemetry.metrics import Metrics
from server.telemetry.spans import OpenSpan, Told, Untraced, request_span, stage_span

log = logging.getLogger("groundwire.request")

#: The outcome of a request that was to be grounded and not answered.
DRY_RUN = "dry_run"


class Recording:
    """Collects what is known of one request while it runs; `close(outcome)` observes it, once."""

    def __init__(
        self,
        metrics: Metrics,
        route: str,
        id_prefix: str | None = "chatcmpl",
        *,
        request_id: str = "",
        span: OpenSpan | None = None,
    ) -> None:
        self._metrics = metrics
        self._route = route
        self._request_id = request_id
        self._span = span or Untraced()
        self.trace = Trace()
        #: Minted here: the client's own request id never becomes an id of ours. Empty: there is no completion.
        self.completion_id = "" if id_prefix is None else f"{id_prefix}-{secrets.token_hex(16)}"
        #: How it ended; None while it runs.
        self.outcome: str | None = None
        #: What the engine measured, once it has told.
        self.timings: EngineTimings | None = None
        #: Called once, when all is known.
        self.on_close: Callable[[], None] | None = None
        #: The body as it came, and what was understood of it, once they are known.
        self.asked: Mapping[str, Any] = {}
        self.plan: Plan | None = None
        self._receipt: Receipt | None = None
        self._engine_from: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._between_tokens: Callable[[float], None] | None = None
        self._events: list[tuple[str, float]] = []
        self._error: str | None = None
        self._failed: str | None = None
        self._cut = False

    @property
    def trace_id(self) -> str | None:
        """The trace that the request belongs to: the client's or our own; None: none."""
        return None if self._span.context is None else self._span.context.trace_id

    @property
    def sampled_trace_id(self) -> str | None:
        """The same where someone keeps that trace, so that a link to it leads somewhere."""
        context = self._span.context
        return context.trace_id if context is not None and context.sampled else None

    @property
    def trace_headers(self) -> Mapping[str, str]:
        """What tells an engine that its work belongs to the request's trace."""
        return {} if self._span.context is None else self._span.context.headers()

    @property
    def receipt(self) -> Receipt:
        """What the request was grounded in, with what came out of a cache until now."""
        assert self._receipt is not None, "the request is not prepared yet"
        return replace(self._receipt, cached=tuple(dict.fromkeys(self.trace.cached)))

    @property
    def is_cut(self) -> bool:
        return self._cut

    @property
    def _grounded(self) -> str:
        return "false" if self._receipt is None or self._receipt.status == "off" else "true"

    def grounded_in(self, receipt: Receipt) -> None:
        """Retrieval is over; what follows is the engine's."""
        self._receipt = receipt
        self._engine_from = self.trace.elapsed_seconds()

    def admitted(self) -> None:
        """The request has its place; what it waited for that is no stage."""
        self._events.append(("admitted", self.trace.elapsed_seconds()))

    def token(self, *, alone: bool = True) -> None:
        """The engine has handed out a token of the stream; not `alone`: the next one may come with it."""
        now = self.trace.elapsed_seconds()
        if self._first_token is None:
            self._first_token = now
            # Looked up once: this runs for each token.
            self._between_tokens = self._metrics.inter_token_seconds.labels(self._grounded).observe
        elif alone and self._between_tokens is not None:
            self._between_tokens(now - self._last_token)
        self._last_token = now

    def failed(self, outcome: str) -> None:
        """The answer broke off after its first byte, where no status can say so any more."""
        self._failed = outcome

    def cut_short(self) -> None:
        """The answer was ended for its time, in good order."""
        self._cut = True
        self._metrics.cut_short.labels(self._route).inc()

    def engine_finished(self, timings: EngineTimings | None) -> None:
        """Take over the engine's own measurements, as stages of the trace."""
        self.timings = timings
        if timings is not None:
            self._engine_stages(
                timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds
            )

    def _engine_stages(
        self, queue: float, prefill: float, decode: float, outcome: str = "ok"
    ) -> None:
        start = self._engine_from or 0.0
        self.trace.record("queue", queue, start_seconds=start)
        self.trace.record("prefill", prefill, start_seconds=start + queue)
        self.trace.record("decode", decode, start_seconds=start + queue + prefill, outcome=outcome)

    @contextmanager
    def closed_by_failure(self) -> Iterator[None]:
        """Close as what an exception of the block says; a block that ends well closes by itself."""
        try:
            yield
        except (ClientDisconnect, asyncio.CancelledError):
            self.close("cancelled")
            raise
        except (Overloaded, Draining):
            raise  # no place was had: admission has counted it, and under overload there are very many
        except Exception as error:
            row = mapped(error)
            self._error = type(error).__name__ if row is INTERNAL else row.code or row.type
            self.close("rejected" if row.status < 500 else "error")
            raise

    def close(self, outcome: str) -> None:
        """Observe the request as `ok`, `error`, `rejected`, `cancelled` or `dry_run`; later calls do nothing."""
        if self.outcome is not None:
            return
        outcome = self._failed if self._failed and outcome == "ok" else outcome
        self.outcome = outcome
        if self.timings is None and "answer" not in self.trace.cached:
            self._unfinished_stages(outcome)
        seconds = self.trace.elapsed_seconds()
        self._observe(outcome, seconds)
        self._log(outcome, seconds)
        if self._span.wanted:
            self._span.end(
                request_span(self._told(outcome, seconds)),
                [stage_span(record) for record in self.trace.records],
            )
        # Let go of: it may hold the request, which holds this.
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _observe(self, outcome: str, seconds: float) -> None:
        metrics, grounded, receipt = self._metrics, self._grounded, self._receipt
        trace_id = self.sampled_trace_id
        exemplar = None if trace_id is None else {"trace_id": trace_id}
        metrics.requests.labels(outcome).inc()
        metrics.request_seconds.labels(self._route, outcome, grounded).observe(seconds, exemplar)
        metrics.observe_stages(self.trace.records, exemplar)
        if self._first_token is not None:
            metrics.ttft_seconds.labels(grounded).observe(self._first_token, exemplar)
        if outcome == "cancelled":
            metrics.aborted.labels(self._route).inc()
            # Of the body as it came: whoever leaves while sources are searched for has no plan yet.
            if self._first_token is None and self.asked.get("stream") is True:
                metrics.abandoned_seconds.observe(seconds, exemplar)
        if receipt is None:
            return
        metrics.retrievals.labels(receipt.status).inc()
        for part in receipt.parts or (receipt,):
            metrics.observe_search(part.best_similarity, part.candidates)
        if outcome != DRY_RUN:
            if receipt.route is not None:
                metrics.routed.labels(receipt.route.size, receipt.route.reason).inc()
            metrics.observe_packing(receipt)
            metrics.observe_tokens(self.timings, receipt.context_tokens)

    def _log(self, outcome: str, seconds: float) -> None:
        named = {"completion_id": self.completion_id} if self.completion_id else {}
        fields = {
            **named,
            "route": self._route,
            "outcome": outcome,
            "duration_seconds": round(seconds, 6),
            "timings_ms": self.trace.timings_ms(),
        }
        log.info(
            "%s %s %.3fs",
            " ".join((*named.values(), self._route)),
            outcome,
            seconds,
            extra={"fields": fields},
        )

    def _told(self, outcome: str, seconds: float) -> Told:
        first = [] if self._first_token is None else [("first_token", self._first_token)]
        return Told(
            route=self._route,
            request_id=self._request_id,
            completion_id=self.completion_id,
            outcome=outcome,
            seconds=seconds,
            error=self._error,
            asked=self.asked,
            plan=self.plan,
            receipt=None if self._receipt is None else self.receipt,
            engine=self.timings,
            events=[*self._events, *first],
        )

    def _unfinished_stages(self, outcome: str) -> None:
        """What we saw ourselves, where the engine tells nothing: it did not finish, or keeps no statistics."""
        if self._engine_from is None or outcome in ("rejected", DRY_RUN):
            return
        now = self.trace.elapsed_seconds()
        until = now if self._first_token is None else self._first_token
        ended = outcome if self._first_token is None else "ok"
        self.trace.record(
            "prefill", until - self._engine_from, start_seconds=self._engine_from, outcome=ended
        )
        if self._first_token is not None:
            self.trace.record("decode", now - until, start_seconds=until, outcome=outcome)

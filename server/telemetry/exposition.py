"""The metrics page, as a scraper reads it and as a Pushgateway takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import (
    basic_auth_handler,
    choose_encoder,
    default_handler,
    delete_from_gateway,
    push_to_gateway,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from server.telemetry.metrics import Metrics

OPENMETRICS = "application/openmetrics-text"
#: The label `job` of everything that is pushed.
JOB = "groundwire"


class _Both:
    """Ours and the process's registry as one, so that one page holds `groundwire_*` and `vllm:*`."""

    def __init__(self, registries: Iterable[CollectorRegistry]) -> None:
        self._registries = tuple(registries)

    def collect(self) -> Iterator[Metric]:
        for registry in self._registries:
            for family in registry.collect():
                # When each counter began: as many lines as there are counters, and Prometheus reads none of them.
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
                yield family


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics page and its content type, as OpenMetrics where the scraper asks for it.

    vLLM registers its metrics in prometheus_client's default registry, in this process.
    """
    both = _Both((registry, PROCESS_REGISTRY))
    encode, content_type = choose_encoder(accept)
    if content_type.startswith(OPENMETRICS):
        # Its escaping by underscores also takes the colon, which is a legal one, out of `vllm:` names, so that a
        # metric would be called by what the scraper reads (client_python issue 1177). Ours need no escaping.
        page: bytes = generate_openmetrics(both, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
        return page, f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
    return encode(both), content_type


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Prometheus Pushgateway, and the group of metrics there that is this process's own.

    `url` holds no password; `user` and `password` are sent as basic auth. Calls block, at most `timeout_seconds`
    in each read and write, and raise OSError.
    """

    url: str
    instance: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_seconds: float = 5.0

    @classmethod
    def parse(cls, url: str, instance: str) -> Gateway:
        """The gateway at an http(s) URL, whose user and password are taken out of it."""
        parts = urlsplit(url)
        user, _, address = parts.netloc.rpartition("@")
        name, _, password = user.partition(":")
        bare = urlunsplit((parts.scheme, address, parts.path, "", "")).rstrip("/")
        if not user:
            return cls(bare, instance)
        return cls(bare, instance, unquote(name), unquote(password))

    def push(self, metrics: Metrics) -> None:
        """Replace the group by what `/metrics` shows now."""
        both: Any = _Both((metrics.registry, PROCESS_REGISTRY))
        push_to_gateway(self.url, JOB, both, **self._how)

    def delete(self) -> None:
        """Take the group away."""
        delete_from_gateway(self.url, JOB, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        handler: Callable[..., Callable[[], None]] = default_handler
        if self.user is not None:
            handler = partial(basic_auth_handler, username=self.user, password=self.password)
        return {
            "grouping_key": {"instance": self.instance},
            "timeout": self.timeout_seconds,
            "handler": handler,
        }

"""What prometheus_client has no class for: buckets by label, and numbers that were counted elsewhere."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.telemetry.buckets import Buckets
from server.telemetry.definitions import Definition, Kind
from server.telemetry.ingests import StepTotals

PREFIX = "groundwire_"
#: Values by those of the labels; a histogram's are whole histograms.
Values = Mapping[tuple[str, ...], float | StepTotals]
_FAMILIES: Mapping[Kind, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class SplitHistogram(Collector):
    """A histogram whose buckets depend on the value of its first label.

    Inside it is one histogram for each of those values; outside it is one metric. A quantile must keep the
    first label (`sum by (le, stage)`): across its values the buckets do not add up.
    """

    def __init__(
        self,
        name: str,
        what: str,
        labels: Sequence[str],
        buckets: Mapping[str, Sequence[float]],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._what, self._first = name, what, labels[0]
        self._parts = {
            value: Histogram(name, what, labels[1:], buckets=own, registry=None)
            for value, own in buckets.items()
        }
        registry.register(self)

    def labels(self, first: str, *others: str) -> Histogram:
        """The one to observe. Raises KeyError for a first value without buckets: labels are a closed set."""
        return self._parts[first].labels(*others)

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._what)

    def collect(self) -> Iterator[Metric]:
        whole = HistogramMetricFamily(self._name, self._what)
        for value, part in self._parts.items():
            for family in part.collect():
                whole.samples += [
                    sample._replace(labels={self._first: value, **sample.labels})
                    for sample in family.samples
                ]
        yield whole


class Elsewhere(Collector):
    """A metric whose numbers someone else has; `read` says what they are when the page is asked for."""

    def __init__(
        self, definition: Definition, read: Callable[[], Values], registry: CollectorRegistry
    ) -> None:
        self._definition = definition
        self._read = read
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, value in self._read().items():
            if isinstance(value, StepTotals):
                bounds = (*map(floatToGoString, value.bounds), "+Inf")
                counts = list(zip(bounds, accumulate(value.counts), strict=True))
                family.add_metric(labels, buckets=counts, sum_value=value.sum_seconds)
            else:
                family.add_metric(labels, value)
        yield family

    def _family(self) -> Any:
        one = self._definition
        return _FAMILIES[one.kind](one.name, one.help, labels=one.labels)


class _Tally:
    """One series of a LoopHistogram."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Buckets) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, amount: float) -> None:
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    @property
    def totals(self) -> StepTotals:
        return StepTotals(tuple(self._counts), self._sum, self._bounds)


class LoopHistogram:
    """A histogram that only the event loop observes: without locks it takes a fraction, which counts for each token.

    It has no exemplars. Who reads it in another thread may miss what is observed just then.
    """

    def __init__(self, bounds: Buckets) -> None:
        self._bounds = bounds
        self._series: dict[tuple[str, ...], _Tally] = {}

    def labels(self, *values: str) -> _Tally:
        return self._series.setdefault(values, _Tally(self._bounds))

    def read(self) -> Values:
        return {values: tally.totals for values, tally in list(self._series.items())}


class Maker:
    """Makes metrics in one registry, and notes what each of them is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.definitions: list[Definition] = []

    def counter(self, name: str, what: str, *labels: str) -> Counter:
        name = self._noted(name, "counter", what, labels).name
        return Counter(name, what, labels, registry=self._registry)

    def gauge(self, name: str, what: str, *labels: str) -> Gauge:
        name = self._noted(name, "gauge", what, labels).name
        return Gauge(name, what, labels, registry=self._registry)

    def histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        name = self._noted(name, "histogram", what, labels).name
        return Histogram(name, what, labels, buckets=buckets, registry=self._registry)

    def split_histogram(
        self, name: str, what: str, buckets: Mapping[str, Sequence[float]], *labels: str
    ) -> SplitHistogram:
        """`buckets` by the value of the first label."""
        name = self._noted(name, "histogram", what, labels).name
        return SplitHistogram(name, what, labels, buckets, self._registry)

    def loop_histogram(self, name: str, what: str, buckets: Buckets, *labels: str) -> LoopHistogram:
        made = LoopHistogram(buckets)
        self.elsewhere(name, "histogram", what, made.read, *labels)
        return made

    def elsewhere(
        self, name: str, kind: Kind, what: str, read: Callable[[], Values], *labels: str
    ) -> None:
        Elsewhere(self._noted(name, kind, what, labels), read, self._registry)

    def _noted(self, name: str, kind: Kind, what: str, labels: tuple[str, ...]) -> Definition:
        definition = Definition(PREFIX + name, kind, what, labels)
        self.definitions.append(definition)
        return definition

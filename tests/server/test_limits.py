"""limits: places are counted, given back whatever happens, and refused over the limit."""

from __future__ import annotations

import pytest

from server.errors import Draining, Overloaded
from server.limits import Admission
from server.telemetry.metrics import Metrics, new_registry


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(new_registry())


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"groundwire_{name}", labels) or 0.0


def test_a_place_is_given_back_whatever_happens(metrics: Metrics) -> None:
    admission = Admission(metrics, 1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"^1$"), admission.admit("/r"):
            raise RuntimeError(str(int(value(metrics, "requests_in_flight", route="/r"))))
    assert value(metrics, "requests_in_flight", route="/r") == 0


def test_over_the_limit(metrics: Metrics) -> None:
    admission = Admission(metrics, 2)
    with admission.admit("/a"), admission.admit("/b"):
        with pytest.raises(Overloaded, match="max_inflight"), admission.admit("/a"):
            pass
        assert value(metrics, "requests_rejected_total", reason="inflight") == 1
        assert value(metrics, "requests_in_flight", route="/a") == 1
    with admission.admit("/a"):
        pass


def test_draining_lets_what_is_in_flight_go_on(metrics: Metrics) -> None:
    admission = Admission(metrics, 2)
    with admission.admit("/a"):
        admission.drain()
        assert admission.draining
        with pytest.raises(Draining), admission.admit("/a"):
            pass
        assert value(metrics, "requests_in_flight", route="/a") == 1
    assert value(metrics, "requests_in_flight", route="/a") == 0
    assert value(metrics, "requests_rejected_total", reason="draining") == 1

"""Every series that a Prometheus beside Groundwire has, with its labels: from the code that makes them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from server.telemetry.definitions import Definition
from server.telemetry.metrics import Metrics, new_registry
from tests.grafana.expressions import grouped

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana"
#: What Prometheus adds to each series that it scrapes.
SCRAPED = frozenset({"job", "instance"})
#: What is not scraped from us: Prometheus's own, and the Pushgateway's.
OTHERS = {
    "up": SCRAPED,
    "push_time_seconds": SCRAPED,
    "ALERTS": frozenset({"alertname", "alertstate"}),
}


@cache
def definitions() -> tuple[Definition, ...]:
    return Metrics(new_registry()).definitions


@cache
def series() -> dict[str, frozenset[str]]:
    """The labels of each series by its name."""
    found = dict(OTHERS)
    for one in (*definitions(), *vllm_definitions()):
        for name in one.series:
            found[name] = (
                SCRAPED | set(one.labels) | ({"le"} if name.endswith("_bucket") else set())
            )
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    for family in process.collect():
        found |= {sample.name: SCRAPED for sample in family.samples}
    for rule in rules("recording.yml"):
        found[rule["record"]] = frozenset(grouped(rule["expr"]) | {"job"})
    return found


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules" / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def vllm_definitions() -> Iterator[Definition]:
    """What the installed vLLM's own code defines, read and not run: it takes seconds to import."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None, "the tests need vLLM's code"
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py"
    for call in ast.walk(ast.parse(source.read_text())):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        name, kind = given.get("name"), call.func.attr.strip("_").removesuffix("_cls")
        if isinstance(name, ast.Constant) and str(name.value).startswith("vllm:"):
            more = [
                node.value
                for node in ast.walk(given["labelnames"])
                if isinstance(node, ast.Constant)
            ]
            full = f"{name.value}_total" if kind == "counter" else name.value
            yield Definition(full, kind, "", ("model_name", "engine", *more))  # type: ignore[arg-type]

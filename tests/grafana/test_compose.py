"""The compose file cannot be run here; what it mounts, names and sets is checked against what is there."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from server.settings import Settings
from tests.grafana.known import FOLDER, ROOT


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


SERVICES: dict[str, Any] = read("compose.yml")["services"]


def mounts(service: str) -> dict[str, str]:
    """Where in the container -> what of ours, or the name of a volume."""
    pairs = (entry.split(":") for entry in SERVICES[service].get("volumes", ()))
    return {inside: source for source, inside, *_ in pairs}


def test_what_is_mounted_or_copied_exists() -> None:
    named = set(read("compose.yml")["volumes"])
    for service in SERVICES:
        for source in mounts(service).values():
            assert source in named or (FOLDER / source).exists(), f"{service}: {source}"
    dockerfile = SERVICES["server"]["build"]["dockerfile_inline"]
    for line in re.findall(r"COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source


def test_ports_are_open_on_loopback_alone() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_server_s_variables_are_settings_and_name_services() -> None:
    given = SERVICES["server"]["environment"]
    names = [
        name.removeprefix("GROUNDWIRE_").lower() for name in given if name.startswith("GROUNDWIRE_")
    ]
    assert set(names) <= set(Settings.model_fields)
    collector = urlsplit(given["OTEL_EXPORTER_OTLP_ENDPOINT"])
    received = read("tempo.yml")["distributor"]["receivers"]["otlp"]["protocols"]["http"][
        "endpoint"
    ]
    assert collector.hostname in SERVICES
    assert str(collector.port) == received.rpartition(":")[2]


def test_prometheus_reaches_the_server_with_its_key() -> None:
    inside = mounts("prometheus")
    assert inside["/etc/prometheus/prometheus.yml"] == "./prometheus.yml"
    config = read("prometheus.yml")
    for rule_file in config["rule_files"]:
        folder = str(PurePosixPath("/etc/prometheus", rule_file).parent)
        assert (FOLDER / inside[folder] / PurePosixPath(rule_file).name).exists()
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "groundwire"
    ((target,),) = (one["targets"] for one in job["static_configs"])
    assert target == "server:8000"
    key = SERVICES["server"]["environment"]["GROUNDWIRE_API_KEYS"].rpartition(":")[2]
    assert job["authorization"]["credentials"] == key


def test_grafana_finds_its_sources_and_the_dashboards() -> None:
    sources = {
        source["uid"]: source
        for source in read("provisioning/datasources/groundwire.yml")["datasources"]
    }
    for source in sources.values():
        assert urlsplit(source["url"]).hostname in SERVICES
    prometheus = sources["groundwire-prometheus"]
    assert (
        prometheus["jsonData"]["timeInterval"]
        == read("prometheus.yml")["global"]["scrape_interval"]
    )
    for destination in prometheus["jsonData"]["exemplarTraceIdDestinations"]:
        assert destination == {"name": "trace_id", "datasourceUid": "groundwire-tempo"}
        assert destination["datasourceUid"] in sources
    (provider,) = read("provisioning/dashboards/groundwire.yml")["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "./dashboards"
    assert mounts("tempo")["/etc/tempo.yml"] == "./tempo.yml"
    assert (
        read("tempo.yml")["server"]["http_listen_port"]
        == urlsplit(sources["groundwire-tempo"]["url"]).port
    )

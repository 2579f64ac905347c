"""Replicas that push to a real Pushgateway: what stays there when they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.debian.servers import running_pushgateway
from tests.server.api.bench import DEADLINE_SECONDS, ROUTE, chat, eventually
from tests.server.api.test_process import Process, serving

pytestmark = pytest.mark.debian


def instances(gateway: str) -> set[str]:
    """Whose request counts the gateway shows."""
    page = httpx.get(f"{gateway}/metrics", trust_env=False, timeout=DEADLINE_SECONDS)
    assert page.status_code == 200, page.text
    lines = [line for line in page.text.splitlines() if line.startswith("groundwire_request_dur")]
    assert all('job="groundwire"' in line for line in lines)
    return set(re.findall(r'instance="([^"]+)"', "\n".join(lines)))


def shows(gateway: str, *expected: str) -> Callable[[], bool]:
    return lambda: instances(gateway) == set(expected)


def ask(process: Process) -> None:
    url = f"{process.ready()}{ROUTE}"
    answer = httpx.post(url, json=chat(), trust_env=False, timeout=DEADLINE_SECONDS)
    assert answer.status_code == 200


@pytest.fixture
def gateway() -> Iterator[str]:
    with running_pushgateway() as url:
        yield url


def test_a_clean_end_takes_its_series_away_and_a_kill_leaves_them(
    gateway: str, tmp_path: Path
) -> None:
    often = {"push_url": gateway, "push_seconds": "0.1"}
    with (
        serving(tmp_path / "one", push_instance="one", **often) as one,
        serving(tmp_path / "two", push_instance="two", **often) as two,
        serving(tmp_path / "three", **often) as three,
    ):
        for process in (one, two, three):
            ask(process)
        named = rf".+:{three.popen.pid}"
        eventually(lambda: len(instances(gateway)) == 3)
        (third,) = instances(gateway) - {"one", "two"}
        assert re.fullmatch(named, third)

        one.popen.kill()
        one.popen.wait(DEADLINE_SECONDS)
        two.popen.terminate()
        assert two.ended() == 0
        eventually(shows(gateway, "one", third))
        assert not any("Traceback" in line or "WARNING" in line for line in two.lines)

        httpx.delete(f"{gateway}/metrics/job/groundwire/instance/one", trust_env=False)
        eventually(shows(gateway, third))
        three.popen.terminate()
        assert three.ended() == 0
        eventually(shows(gateway))

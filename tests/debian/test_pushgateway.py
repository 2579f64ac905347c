"""Replicas that push to a real Pushgateway: what stays there when they go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

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


def test_a_clean_end_takes_its_series_away_and_a_kill_leaves_them(
    pushgateway: str, tmp_path: Path
) -> None:
    often = {"push_url": pushgateway, "push_seconds": "0.1"}
    with (
        serving(tmp_path / "one", push_instance="one", **often) as one,
        serving(tmp_path / "two", push_instance="two", **often) as two,
        serving(tmp_path / "three", **often) as three,
    ):
        for process in (one, two, three):
            ask(process)
        named = rf".+:{three.popen.pid}"
        eventually(lambda: len(instances(pushgateway)) == 3)
        (third,) = instances(pushgateway) - {"one", "two"}
        assert re.fullmatch(named, third)

        one.popen.kill()
        one.popen.wait(DEADLINE_SECONDS)
        two.popen.terminate()
        assert two.ended() == 0
        eventually(shows(pushgateway, "one", third))
        assert not any("Traceback" in line or "WARNING" in line for line in two.lines)

        httpx.delete(f"{pushgateway}/metrics/job/groundwire/instance/one", trust_env=False)
        eventually(shows(pushgateway, third))
        three.popen.terminate()
        assert three.ended() == 0
        eventually(shows(pushgateway))

"""The listener's connections."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from server.listener import Listener
from server.settings import Settings


def test_an_idle_connection_is_kept_longer_than_its_client_keeps_it() -> None:
    """One that both give up at the same time breaks the request that is sent on it in that moment."""
    listener = Listener(FastAPI(), Settings(), on_started=lambda _: None, on_stopping=lambda: None)
    expiry = httpx._config.DEFAULT_LIMITS.keepalive_expiry
    assert expiry is not None
    assert listener.config.timeout_keep_alive > 2 * expiry

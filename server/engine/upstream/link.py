"""The connection to one upstream: a pool, its timeouts, and whether it is there.

What is sent is never repeated: only a connection that could not be made is tried a second time. Of the
client's headers only its trace comes here, so its key and cookies cannot travel on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import orjson

from server.engine.base import (
    NO_TRACE,
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    TraceHeaders,
)
from server.engine.upstream import answers

log = logging.getLogger(__name__)

#: How long it may take to answer a question about itself.
PROBE_TIMEOUT_SECONDS = 2.0
#: Below what servers keep idle connections for (uvicorn: 5 s), so that ours is rarely the stale one.
KEEP_ALIVE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """One upstream. `url` is what clients call `base_url`; no `models` means those that it lists."""

    name: str
    url: str
    api_key: str | None = None
    models: Sequence[str] = ()
    max_model_len: int | None = None
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 300.0
    send_cache_salt: bool = True


def open_client(options: UpstreamOptions) -> httpx.AsyncClient:
    """A pool of connections to one upstream, without the environment's proxies and without cookies."""
    # Admission bounds how many requests there are; a second bound here would be a second queue.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
    # Compressed streams arrive late.
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if options.api_key:
        headers["authorization"] = f"Bearer {options.api_key}"
    return httpx.AsyncClient(
        headers=headers,
        # One jar for all callers would carry one caller's cookie into another's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=httpx.Timeout(
            options.read_timeout_seconds, connect=options.connect_timeout_seconds
        ),
        transport=httpx.AsyncHTTPTransport(retries=1, limits=limits, trust_env=False),
        trust_env=False,
    )


class Link:
    """Requests to one upstream, and what they told of its health: `down` says why it cannot be reached."""

    def __init__(self, name: str, url: str, client: httpx.AsyncClient) -> None:
        self.where = f"the engine {name!r}"
        self.down: str | None = None
        self._url = url.rstrip("/")
        self._client = client

    @property
    def tokenize_url(self) -> str:
        """vLLM's route; beside its OpenAI API, not in it."""
        return f"{self._url.removesuffix('/v1')}/tokenize"

    async def open(self, path: str, body: Any, headers: TraceHeaders = NO_TRACE) -> httpx.Response:
        """An open response with a good status. Raises EngineError."""
        response = await self._send("POST", f"{self._url}{path}", body, headers=headers)
        if response.status_code == 200:
            return response
        raw = await _rest(response)
        if response.status_code in (401, 403):
            log.error("%s refuses its api_key (%d)", self.where, response.status_code)
        retry_after = response.headers.get("retry-after")
        raise answers.refusal(response.status_code, raw, retry_after, self.where)

    async def json(self, path: str, body: Any, headers: TraceHeaders = NO_TRACE) -> Any:
        """A whole answer. Raises EngineError."""
        return await self._loaded(await self.open(path, body, headers))

    async def models(self) -> Any:
        """Its list of models, asked as a probe. Raises EngineError."""
        url = f"{self._url}/models"
        response = await self._send("GET", url, seconds=PROBE_TIMEOUT_SECONDS)
        if response.status_code == 200:
            return await self._loaded(response)
        raw = await _rest(response)
        raise answers.refusal(response.status_code, raw, None, self.where)

    async def tokenize(self, body: Any) -> tuple[int, Any]:
        """Its status and answer about a prompt's tokens; None is no JSON. Raises EngineUnreachable."""
        response = await self._send("POST", self.tokenize_url, body, PROBE_TIMEOUT_SECONDS)
        raw = await _rest(response)
        try:
            return response.status_code, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return response.status_code, None

    async def _send(
        self,
        method: str,
        url: str,
        body: Any = None,
        seconds: float | None = None,
        headers: TraceHeaders = NO_TRACE,
    ) -> httpx.Response:
        request = self._client.build_request(
            method,
            url,
            content=None if body is None else orjson.dumps(body),
            headers=headers,
            timeout=httpx.USE_CLIENT_DEFAULT if seconds is None else seconds,
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self.down = f"{self.where} cannot be reached: {reason(error)}"
            raise _failure(error, self.where) from error
        self.down = None
        return response

    async def _loaded(self, response: httpx.Response) -> Any:
        try:
            return orjson.loads(await response.aread())
        except httpx.HTTPError as error:
            raise _failure(error, self.where) from error
        except orjson.JSONDecodeError as error:
            raise EngineError(f"{self.where} answered what is not JSON") from error
        finally:
            await response.aclose()


def _failure(error: httpx.HTTPError, where: str) -> EngineUnreachable:
    """What went wrong on the way as one of our errors; a slow answer does not mean that it is gone."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return EngineTimeout(f"{where} is too slow: {reason(error)}")
    did = (
        "cannot be reached"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        else "broke off"
    )
    return EngineUnreachable(f"{where} {did}: {reason(error)}")


def reason(error: httpx.HTTPError) -> str:
    """What went wrong on the way, in words for whoever runs the server."""
    if isinstance(error, httpx.ConnectTimeout):
        return "it did not accept a connection in time"
    if isinstance(error, httpx.TimeoutException):
        return "nothing came in time (read_timeout_seconds)"
    return str(error) or type(error).__name__


async def _rest(response: httpx.Response) -> bytes:
    """The body of an answer that is read for its reason: what did not arrive is left out."""
    try:
        return await response.aread()
    except httpx.HTTPError:
        return b""
    finally:
        await response.aclose()

"""auth: a key becomes a caller, or 401. Also signs the passage URLs that citations point at."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from pydantic import SecretStr

from retrieval.types import HASH_DIGITS, Passage
from server.catalog import LOCAL_TENANT
from server.errors import NotFound, Unauthorized

KEY_BYTES = 32
#: How long a citation's link works when keys are configured.
LINK_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `cache_salt` keeps one tenant's prefix cache from answering, and timing, another's.

    `key` names the key among those configured, without saying it.
    """

    tenant: str
    cache_salt: str | None = None
    key: str = ""


class Keys:
    """The configured keys. Without any, every caller is the local tenant (the listener is loopback then)."""

    def __init__(self, keys: Sequence[SecretStr], secret: bytes) -> None:
        self._tenants: list[tuple[bytes, str]] = []
        for entry in keys:
            tenant, colon, key = entry.get_secret_value().rpartition(":")
            self._tenants.append((key.encode(), tenant if colon else LOCAL_TENANT))
        self._secret = secret

    def __bool__(self) -> bool:
        return bool(self._tenants)

    @property
    def tenants(self) -> frozenset[str]:
        """Whose keys they are."""
        return frozenset(tenant for _, tenant in self._tenants)

    def caller(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization` header. Raises Unauthorized."""
        if not self._tenants:
            return Caller(LOCAL_TENANT)
        scheme, _, offered = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not offered.strip():
            raise Unauthorized("no API key: send `Authorization: Bearer YOUR_KEY`")
        # Every key is compared, in constant time, so that timing tells nothing about any of them.
        found = None
        for position, (key, tenant) in enumerate(self._tenants):
            if hmac.compare_digest(key, offered.strip().encode()):
                found = position, tenant
        if found is None:
            raise Unauthorized("this API key is not valid here")
        position, tenant = found
        return Caller(tenant, _digest(self._secret, "cache", tenant), key=str(position))


def tenants_that_ask(keys: Sequence[SecretStr]) -> frozenset[str]:
    """Whose keys they are; without any it is the local tenant that asks."""
    return Keys(keys, b"").tenants or frozenset({LOCAL_TENANT})


def signing_key(path: Path, given: SecretStr | None = None) -> bytes:
    """The key of signatures and cache salts: of what is `given`, else made once, readable by the owner alone.

    Appears whole or not at all, so that no two processes differ. Raises ValueError for a damaged file.
    """
    if given is not None:
        return hashlib.sha256(given.get_secret_value().encode()).digest()
    if not path.exists():
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
        os.unlink(name)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"{path} is damaged: remove it, and a new key is made (old links then end)"
        )
    return key


def _digest(secret: bytes, *parts: str) -> str:
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    message = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Links:
    """Makes and checks passage URLs; signed over tenant, file, content, chunk and expiry if `signed`."""

    secret: bytes
    signed: bool

    def url(self, base: str, tenant: str, passage: Passage, now: float) -> str:
        path = f"{base}/v1/rag/passages/{passage.id}"
        if not self.signed:
            return path
        # To the day, so that the same citation has the same URL all day long.
        expires = str(int(now) // 86400 * 86400 + LINK_SECONDS)
        parts = (passage.file_id, passage.content_hash[:HASH_DIGITS], str(passage.chunk))
        signature = self._sign(tenant, expires, *parts)
        return f"{path}?{urlencode({'tenant': tenant, 'expires': expires, 'signature': signature})}"

    def tenant(self, query: Mapping[str, str], parts: Sequence[str], now: float) -> str | None:
        """The tenant whose valid signature the query carries; None where there is none.

        Raises NotFound for a signature that is wrong or has expired.
        """
        if "signature" not in query:
            return None
        tenant, expires = query.get("tenant", ""), query.get("expires", "")
        expected = self._sign(tenant, expires, *parts)
        offered = query["signature"].encode()
        if not hmac.compare_digest(expected.encode(), offered) or float(expires) < now:
            raise NotFound("this link is not valid, or no longer")
        return tenant

    def _sign(self, *parts: str) -> str:
        return _digest(self.secret, "passage", *parts)

"""The receipts of the latest requests: bounded, by tenant and id, in this process's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from server.account import Account, Asked, account_bytes, to_keep

#: Tenant and id: another tenant's id is simply not there.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An account, or of a request that still runs the way to what is known of it now."""

    now: Callable[[], Account]
    alias: Key
    size_bytes: int


class ReceiptRing:
    """Keeps the accounts of `max_entries` requests in at most about `max_bytes`; the oldest go first.

    A request is there from `begin` on, and complete after what `begin` returns was called. An account larger than
    `max_bytes` is not kept. Used from one event loop.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._aliases: dict[Key, Key] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def find(self, tenant: str, receipt_id: str) -> Account | None:
        """The account of a completion's id, or of the latest request with this `x-request-id`."""
        key = (tenant, receipt_id)
        entry = self._entries.get(key) or self._entries.get(self._aliases.get(key, key))
        return None if entry is None else entry.now()

    def begin(self, tenant: str, asked: Asked, now: Callable[[], Account]) -> Callable[[], None]:
        """Show a request that runs, by calling `now`; call what this returns when it has ended."""
        key, alias = (tenant, asked.completion_id), (tenant, asked.request_id)
        self._put(key, _Entry(now, alias, 0))

        def ended() -> None:
            account = to_keep(now())
            self._put(key, _Entry(lambda: account, alias, account_bytes(account)))

        return ended

    def _put(self, key: Key, entry: _Entry) -> None:
        if key in self._entries:
            self._forget(key)
        if entry.size_bytes > self._max_bytes:
            return
        self._entries[key] = entry
        self._aliases[entry.alias] = key
        self._bytes += entry.size_bytes
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._bytes -= entry.size_bytes
        if self._aliases.get(entry.alias) == key:
            del self._aliases[entry.alias]

"""A byte stream cut into whole server-sent events, wherever the network cut it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

#: An event longer than this is no chunk of an answer; it must not fill the memory.
MAX_EVENT_BYTES = 8 * 2**20


class EventTooLong(Exception):
    """An event did not end within MAX_EVENT_BYTES."""


class EventSplitter:
    """Feed it network chunks; it gives the data of each event that is complete, without `data:`."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that `chunk` completes. Raises EventTooLong."""
        buffer = self._rest + chunk
        held = b""
        if b"\r" in buffer:
            # A line feed may follow in the next network chunk.
            held = b"\r" if buffer.endswith(b"\r") else b""
            buffer = buffer.removesuffix(held).replace(b"\r\n", b"\n")
        *events, rest = buffer.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        for event in events:
            if data := _data(event):
                yield data


def _data(event: bytes) -> bytes:
    """The event's data; comments, names and ids carry nothing for OpenAI's clients."""
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b" ".join(lines)  # a line break between JSON's tokens is white space

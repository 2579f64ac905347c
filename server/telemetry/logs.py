"""The log: as text or as JSON, one object a line, with the request and the trace that a line belongs to.

Nothing of a prompt, a passage or an answer is in it unless `log_content` says so: what exceptions of libraries say is
left out within a request, for they may quote what they choked on. Of our own exceptions that goes for the part which
repeats one of a library's.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
HIDDEN = "(its message is left out: log_content)"
#: The packages whose exceptions say nothing of what was asked, but for what they repeat of others.
OURS = ("server", "retrieval")
#: So much of a message is looked for in another one, which may have cut it or taken its first line.
REPEATED_CHARACTERS = 40
#: Libraries that say at info or debug what they do at each call, some with what was asked.
NOISY = ("aiosqlite", "asyncpg", "httpx", "httpcore", "chromadb", "openvino", "urllib3")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a line of the log belongs to."""

    request_id: str
    trace_id: str | None = None


_request: ContextVar[Request | None] = ContextVar("request", default=None)


def in_request(request_id: str, trace_id: str | None) -> None:
    """From here on this task, and those that it starts, log for this request."""
    _request.set(Request(request_id, trace_id))


def in_trace(trace_id: str | None) -> None:
    """The request that is logged for belongs to this trace."""
    if (request := _request.get()) is not None:
        _request.set(replace(request, trace_id=trace_id))


class TextFormatter(logging.Formatter):
    """One line of text, and below it the stack of an exception."""

    def __init__(self, *, content: bool = False) -> None:
        super().__init__(TEXT_FORMAT)
        self._content = content

    def formatException(self, ei: ExcInfo) -> str:
        if self._content or _request.get() is None or ei[1] is None:
            return super().formatException(ei)
        return "\n\nafter:\n\n".join(_stacks(ei[1]))

    def format(self, record: logging.LogRecord) -> str:
        # Kept by the first handler for the next, which may have another formatter.
        record.exc_text = None
        return super().format(self._without_quotes(record))

    def _without_quotes(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record, or a copy that has of the exceptions among its arguments only what may be logged."""
        args = record.args
        if self._content or _request.get() is None or not isinstance(args, tuple):
            return record
        if not any(isinstance(arg, BaseException) for arg in args):
            return record
        record = copy(record)
        record.args = tuple(
            _own_words(arg) if isinstance(arg, BaseException) else arg for arg in args
        )
        return record


class JsonFormatter(TextFormatter):
    """One JSON object a line.

    `time` (UTC), `level`, `logger`, `message`; `request_id` and `trace_id` within a request; `exception`; and
    what a line carries as `fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._without_quotes(record).getMessage(),
        }
        if (request := _request.get()) is not None:
            line["request_id"] = request.request_id
            if request.trace_id is not None:
                line["trace_id"] = request.trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str, log_format: str, *, content: bool) -> None:
    """Log to stderr from now on, in this process."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(content=content))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(log_format == "json")
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # That a collector is away is said when a batch is given up, not at each try.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)


def config_of_vllm(level: str, *, content: bool) -> dict[str, Any]:
    """vLLM's log in the same form, in its processes as in this one: what VLLM_LOGGING_CONFIG_PATH reads."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{JsonFormatter.__name__}", "content": content}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "loggers": {"vllm": {"handlers": ["stderr"], "level": level, "propagate": False}},
    }


def _own_words(error: BaseException) -> str:
    """What an exception of ours says, up to where it repeats another's; of a library's, its type alone."""
    if not _is_ours(error):
        return f"{type(error).__qualname__} {HIDDEN}"
    words = str(error)
    before = error.__cause__ or error.__context__
    while before is not None:
        lines = str(before).strip().splitlines()
        if lines and not _is_ours(before):
            begin = words.find(lines[0][:REPEATED_CHARACTERS])
            if begin >= 0:
                words = f"{words[:begin]}{type(before).__qualname__} {HIDDEN}"
        before = before.__cause__ or before.__context__
    return words


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in OURS


def _stacks(error: BaseException) -> Iterator[str]:
    """The stack of an exception and of what led to it, innermost last, without their messages."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    yield f"{stack}{type(error).__qualname__} {HIDDEN}"
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _stacks(part)
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _stacks(before)

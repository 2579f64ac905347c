"""logs: lines as text and as JSON, and what exceptions may say in them."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from contextvars import copy_context

import pytest

from retrieval.errors import EmbedderError, own_copy
from server.telemetry.logs import (
    HIDDEN,
    JsonFormatter,
    TextFormatter,
    config_of_vllm,
    in_request,
    in_trace,
)

#: Not as it stands in these lines, which a stack quotes.
SECRET = "-".join(("the", "secret", "question"))


def record(message: str = "said %s", *args: object, error: bool = False) -> logging.LogRecord:
    exc_info = sys.exc_info() if error else None
    return logging.LogRecord("a.b", logging.WARNING, __file__, 1, message, args, exc_info)


def failing() -> logging.LogRecord:
    """An error in a request that comes from another, both of which quote what they got."""
    in_request("req_1", None)
    try:
        try:
            {}[SECRET]  # type: ignore[index]
        except KeyError as error:
            raise ExceptionGroup(SECRET, [ValueError(SECRET)]) from error
    except ExceptionGroup:
        return record("it failed", error=True)


def wrapped() -> Exception:
    """An error of ours that repeats a library's at its end, as one of several waiters gets it."""
    try:
        try:
            raise ValueError(f"cannot read {SECRET!r}\nsecond line")
        except ValueError as error:
            raise EmbedderError(f"embedder x failed: {error}") from error
    except EmbedderError as error:
        own = own_copy(error)
        assert isinstance(own, EmbedderError)
        return own


def refused() -> Exception:
    """An error of ours that says in its own words what led to it."""
    try:
        raise EmbedderError("takes 5 s") from ValueError(SECRET)
    except EmbedderError as error:
        return error


def said_in_a_request(formatter: logging.Formatter, error: Exception) -> str:
    def line() -> str:
        in_request("req_1", None)
        return formatter.format(record("it failed: %s; %s goes on", error, "it"))

    return copy_context().run(line)


def in_a_request(formatter: logging.Formatter) -> str:
    return copy_context().run(lambda: formatter.format(failing()))


def test_a_line_of_json() -> None:
    line = json.loads(JsonFormatter().format(record("said %s\n%s", "ü\ud83d", 1)))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "a.b", "message": "said ü\ud83d\n1"}


def test_a_line_of_a_request() -> None:
    def line() -> dict[str, object]:
        in_request("req_1", None)
        first: dict[str, object] = json.loads(JsonFormatter().format(record("x")))
        assert "trace_id" not in first
        in_trace("abc")
        said = record("x")
        said.fields = {"outcome": "ok"}
        again: dict[str, object] = json.loads(JsonFormatter().format(said))
        return again

    said = copy_context().run(line)
    assert (said["request_id"], said["trace_id"], said["outcome"]) == ("req_1", "abc", "ok")
    assert "request_id" not in json.loads(JsonFormatter().format(record("x")))


@pytest.mark.parametrize("kind", [TextFormatter, JsonFormatter])
def test_what_exceptions_say_in_a_request_is_left_out(kind: type[TextFormatter]) -> None:
    text = in_a_request(kind())
    assert SECRET not in text
    for name in ("ExceptionGroup", "ValueError", "KeyError"):
        assert f"{name} {HIDDEN}" in text
    assert "in failing" in text


@pytest.mark.parametrize("kind", [TextFormatter, JsonFormatter])
def test_where_content_is_logged_they_say_it(kind: type[TextFormatter]) -> None:
    text = in_a_request(kind(content=True))
    assert f"ValueError: {SECRET}" in text
    assert HIDDEN not in text


@pytest.mark.parametrize("kind", [TextFormatter, JsonFormatter])
def test_an_error_of_ours_does_not_repeat_what_a_library_s_says(kind: type[TextFormatter]) -> None:
    hidden = f"it failed: embedder x failed: ValueError {HIDDEN}; it goes on"
    text = said_in_a_request(kind(), wrapped())
    assert hidden in text
    assert SECRET not in text
    assert "second line" not in text
    assert SECRET in said_in_a_request(kind(content=True), wrapped())
    assert SECRET in kind().format(record("it failed: %s", wrapped()))
    assert "it failed: takes 5 s; it goes on" in said_in_a_request(kind(), refused())
    alien = said_in_a_request(kind(), KeyError(SECRET))
    assert f"it failed: KeyError {HIDDEN}; it goes on" in alien


def test_a_handler_that_shows_content_is_given_all_of_it() -> None:
    said = record("it failed: %s", wrapped())

    def both() -> tuple[str, str]:
        in_request("req_1", None)
        return TextFormatter().format(said), TextFormatter(content=True).format(said)

    hidden, shown = copy_context().run(both)
    assert SECRET not in hidden
    assert SECRET in shown


def test_outside_of_a_request_they_say_it() -> None:
    try:
        raise ValueError("no such folder")
    except ValueError:
        text = TextFormatter().format(record("it failed", error=True))
    assert "ValueError: no such folder" in text


def test_another_handler_s_text_is_not_taken_over() -> None:
    def both() -> str:
        said = failing()
        logging.Formatter().format(said)
        return TextFormatter().format(said)

    assert SECRET not in copy_context().run(both)


def test_vllm_s_own_log_reads_its_formatter_from_here() -> None:
    config = json.loads(json.dumps(config_of_vllm("DEBUG", content=False)))
    logger = logging.getLogger("vllm")
    kept = logger.handlers[:], logger.level, logger.propagate
    try:
        logging.config.dictConfig(config)
        (handler,) = logger.handlers
        assert json.loads(handler.format(record("x")))["message"] == "x"
    finally:
        logger.handlers[:], logger.level, logger.propagate = kept

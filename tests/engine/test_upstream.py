"""The upstream engine against real HTTP: a scripted Groundwire's answers, and every way to answer badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.engine.base import (
    UNCOUNTED_FIELDS,
    EngineError,
    EngineOverloaded,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
)
from server.engine.upstream import UpstreamEngine, UpstreamOptions, open_upstream
from server.engine.upstream.estimate import estimate_prompt, estimate_text
from server.engine.upstream.sse_events import EventSplitter

Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Count."}]}
OPENING = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    head = {"id": "theirs", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    body = {**head, "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def whole(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def upstream(answer: Answer, **options: Any) -> AsyncIterator[UpstreamEngine]:
    """An engine over a server that answers each request by `answer`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                await reader.readexactly(sum(length))
                await answer(head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    known = {"models": ("m",), "max_model_len": 100, **options}
    try:
        async with open_upstream(UpstreamOptions("far", url, **known)) as engine:
            yield engine
    finally:
        server.close()


def says(*parts: bytes) -> Answer:
    """Writes the parts, each in a packet of its own where the network allows, and closes."""

    async def answer(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    return answer


async def events(engine: UpstreamEngine) -> list[bytes]:
    return [event async for event in await engine.stream(BODY, "chatcmpl-ours")]


def streamed(*parts: bytes, **options: Any) -> list[bytes]:
    async def run() -> list[bytes]:
        async with upstream(says(OPENING, *parts), **options) as engine:
            return await asyncio.wait_for(events(engine), 10)

    return asyncio.run(run())


def refused(*parts: bytes, error: type[EngineError]) -> Any:
    async def run() -> Any:
        async with upstream(says(*parts)) as engine:
            with pytest.raises(error) as caught:
                await engine.complete(BODY, "chatcmpl-ours")
            return caught.value

    return asyncio.run(run())


@pytest.mark.parametrize("cut", [1, 7, 40, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_are_whole_however_the_network_cuts_them(cut: int, end: bytes) -> None:
    raw = (chunk("a") + b": ping\n\n" + chunk("b") + b"data: [DONE]\n\n").replace(b"\n", end)
    splitter, data = EventSplitter(), []
    for start in range(0, len(raw), cut):
        data += splitter.feed(raw[start : start + cut])
    assert data == [chunk("a")[6:-2], chunk("b")[6:-2], b"[DONE]"]


def test_a_stream_has_our_id_and_nothing_else_changed() -> None:
    got = streamed(chunk("a"), chunk("b", "stop"), b"data: [DONE]\n\n")
    assert got == [
        chunk("a").replace(b"theirs", b"chatcmpl-ours"),
        chunk("b", "stop").replace(b"theirs", b"chatcmpl-ours"),
        b"data: [DONE]\n\n",
    ]


def test_a_stream_with_spaces_is_made_compact() -> None:
    loose = b"data: " + json.dumps(json.loads(chunk("a", "stop")[6:])).encode() + b"\n\n"
    first, last = streamed(loose)
    assert first == chunk("a", "stop").replace(b"theirs", b"chatcmpl-ours")
    assert last == b"data: [DONE]\n\n", "the end that it forgot to mark"


def test_a_stream_in_another_order_of_fields_is_put_in_openais() -> None:
    fields = json.loads(chunk("a", "stop")[6:])
    sorted_ = json.dumps({**fields, "timings": 1}, separators=(",", ":"), sort_keys=True)
    first, _ = streamed(b"data: " + sorted_.encode() + b"\n\n")
    names = list(json.loads(first[6:]))
    assert names == ["id", "object", "created", "model", "choices", "timings"]
    assert b"theirs" not in first


@pytest.mark.parametrize(
    ("last", "words"),
    [(b"", "broke off"), (b"data: {oops\n\n", "no completion chunk"),
     (b'data: {"id":"x"}\n\n', "no completion chunk"),
     (b"data: 7\n\n", "no completion chunk"),
     (chunk("b").replace(b'"index":0', b'"index":5'), "no completion chunk"),
     (chunk("b").replace(b'"b"', b"[]"), "no completion chunk"),
     (b'data: {"error":{"message":"out of memory"}}\n\n', "out of memory")],
)  # fmt: skip
def test_a_stream_that_fails_says_so(last: bytes, words: str) -> None:
    first, failure = streamed(chunk("a"), last)
    assert b'"content":"a"' in first
    assert failure.startswith(b'data: {"error"')
    assert failure.endswith(b"\n\n")
    assert words in json.loads(failure[6:])["error"]["message"]


def text_chunk(**choice: Any) -> bytes:
    head = {"id": "theirs", "object": "text_completion", "created": 7, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("last", "words"),
    [(text_chunk(text="b"), "broke off"), (text_chunk(text=7), "no completion chunk"),
     (text_chunk(delta={"content": "b"}), "no completion chunk"),
     (text_chunk(index=1, text="b"), "no completion chunk")],
)  # fmt: skip
def test_a_text_that_fails_says_so(last: bytes, words: str) -> None:
    async def run() -> list[bytes]:
        async with upstream(says(OPENING, text_chunk(text="a"), last)) as engine:
            stream = await engine.stream({"model": "m", "prompt": [1, 2]}, "cmpl-ours")
            return [event async for event in stream]

    first, *_, failure = asyncio.run(asyncio.wait_for(run(), 10))
    assert json.loads(first[6:])["choices"] == [{"index": 0, "text": "a"}]
    assert words in json.loads(failure[6:])["error"]["message"]


@pytest.mark.parametrize("choices", [b"[]", b'[{"message":{"content":"x"}}]', b'[{"text":7}]'])
def test_a_text_that_is_none(choices: bytes) -> None:
    async def run() -> None:
        async with upstream(says(whole("200 OK", b'{"choices":' + choices + b"}"))) as engine:
            with pytest.raises(EngineError):
                await engine.complete({"model": "m", "prompt": "a"}, "cmpl-ours")

    asyncio.run(run())


def test_its_limits_are_told_with_their_retry_after() -> None:
    body = b'{"error":{"message":"slow down"}}'
    error = refused(whole("429 Too Many Requests", body, "retry-after: 17"), error=EngineOverloaded)
    assert (error.status, error.retry_after, str(error)) == (429, "17", "slow down")


def test_an_over_long_prompt_has_its_code() -> None:
    body = b'{"message":"the maximum context length is 100 tokens"}'
    error = refused(whole("400 Bad Request", body), error=EngineRejected)
    assert (error.status, error.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("status", ["401 Unauthorized", "302 Found", "500 Oops"])
def test_what_is_between_us_and_it_is_not_the_clients_fault(status: str) -> None:
    error = refused(whole(status, b"<html>"), error=EngineError)
    assert not isinstance(error, EngineRejected)


def test_a_gateway_that_finds_nobody_is_an_upstream_that_cannot_be_reached() -> None:
    refused(whole("502 Bad Gateway", b"<html>"), error=EngineUnreachable)


def test_an_answer_cut_in_the_middle_is_said_to_be() -> None:
    cut = whole("200 OK", b'{"choices":[{"message":{"content":"x"}}]}')[:-9]
    error = refused(cut, error=EngineUnreachable)
    assert "broke off" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":[{"message":{"content":7}}]}',
    ],
)
def test_an_answer_that_is_none(body: bytes) -> None:
    refused(whole("200 OK", body), error=EngineError)


def test_a_silent_upstream_is_no_hang() -> None:
    async def silent(_: bytes, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> None:
        async with upstream(silent, read_timeout_seconds=0.1) as engine:
            with pytest.raises(EngineTimeout, match="read_timeout_seconds"):
                await engine.complete(BODY, "chatcmpl-ours")
            engine.check_health()

    asyncio.run(run())


def test_connections_are_used_again_also_after_a_stream() -> None:
    async def run() -> int:
        body = chunk("a", "stop") + b"data: [DONE]\n\n"
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        seen: set[Any] = set()

        async def answer(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.add(writer)
            writer.write(head + b"%x\r\n%s\r\n" % (len(body), body))
            await writer.drain()
            writer.write(b"0\r\n\r\n")

        async with upstream(answer) as engine:
            for _ in range(3):
                assert (await events(engine))[-1] == b"data: [DONE]\n\n"
            return len(seen)

    assert asyncio.run(run()) == 1


def test_each_chunk_is_passed_on_before_the_next_is_there() -> None:
    async def run() -> None:
        read = asyncio.Event()

        async def waits(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OPENING)
            for text in "abc":
                writer.write(chunk(text))
                await writer.drain()
                await read.wait()
                read.clear()
            writer.close()

        async with upstream(waits) as engine:
            stream = await engine.stream(BODY, "chatcmpl-ours")
            for text in "abc":
                event = await asyncio.wait_for(anext(stream), 5)
                assert json.loads(event[6:])["choices"][0]["delta"]["content"] == text
                read.set()
            await stream.aclose()

    asyncio.run(run())


def test_a_stream_that_broke_off_is_not_asked_for_again() -> None:
    asked = 0

    async def breaks(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(OPENING + chunk("a"))
        await writer.drain()
        writer.transport.abort()

    async def run() -> list[bytes]:
        async with upstream(breaks) as engine:
            return await events(engine)

    *_, last = asyncio.run(run())
    assert last.startswith(b'data: {"error"')
    assert asked == 1


def test_usage_that_nobody_asked_for_is_left_out() -> None:
    usage = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1}}\n\n'
    assert len(streamed(chunk("a", "stop"), usage, b"data: [DONE]\n\n")) == 2


def test_closing_a_stream_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def endless(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OPENING + chunk("a"))
        await writer.drain()
        await reader.read()
        gone.set()

    async def run() -> None:
        async with upstream(endless) as engine:
            for started in (True, False):
                gone.clear()
                stream = await engine.stream(BODY, "chatcmpl-ours")
                if started:
                    await anext(stream)
                await stream.aclose()
                await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(run())


def test_only_its_own_key_travels_and_no_cookie_stays() -> None:
    heads = []

    async def baker(head: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(head.lower())
        body = b'{"id":"theirs","choices":[{"message":{"content":"x"}}]}'
        writer.write(whole("200 OK", body, "set-cookie: a=b; path=/"))

    async def run() -> None:
        async with upstream(baker, api_key="own") as engine:
            for _ in range(2):
                answer = json.loads(await engine.complete(BODY, "chatcmpl-ours"))
                assert answer["id"] == "chatcmpl-ours"

    asyncio.run(run())
    assert len(heads) == 2
    assert all(b"authorization: bearer own" in head and b"cookie:" not in head for head in heads)


def test_a_dead_upstream_is_unreachable_and_not_our_death() -> None:
    async def run() -> None:
        options = UpstreamOptions("far", "http://127.0.0.1:9/v1", None, ("m",), 100)
        async with open_upstream(options) as engine:
            engine.check_health()
            with pytest.raises(EngineUnreachable):
                await engine.complete(BODY, "chatcmpl-ours")
            with pytest.raises(EngineUnreachable):
                engine.check_health()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "times"),
    [("404 Not Found", 1), ("200 OK", 1), ("429 Too Many Requests", 2), ("400 Bad Request", 2)],
)
@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"count":"7"}', b'{"count":true}'])
def test_tokenize_is_asked_until_there_is_none(answer: str, times: int, body: bytes) -> None:
    asked = []

    async def none(head: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(head.split()[1])
        writer.write(whole(answer, body))

    async def run() -> None:
        async with upstream(none) as engine:
            for _ in range(2):
                assert await engine.count_tokens(BODY) == estimate_prompt(BODY)

    asyncio.run(run())
    assert asked == [b"/tokenize"] * times


@pytest.mark.parametrize("text", ["hello there", "3.14159", "日本語", "  indented"])
def test_the_estimate_is_not_below_a_byte_level_worst_case_of_words(text: str) -> None:
    assert estimate_text(text) >= len(text.split())
    assert estimate_text(text) >= sum(character.isdigit() for character in text)


def test_the_estimate_of_a_text_completion_is_its_prompt_s_at_least() -> None:
    assert estimate_prompt({"prompt": "one two three"}) >= estimate_text("one two three")


@pytest.mark.parametrize("field", UNCOUNTED_FIELDS)
def test_what_no_count_knows_is_not_counted(field: str) -> None:
    async def count() -> None:
        async with upstream(says(), models=("m",), max_model_len=100) as engine:
            await engine.count_tokens({"model": "m", "prompt": "one two", field: "x"})

    with pytest.raises(EngineRejected, match=field):
        asyncio.run(count())


def models_listed(*cards: dict[str, Any], **options: Any) -> list[tuple[str, int]]:
    """The models and the length of an engine whose upstream lists `cards`."""
    body = json.dumps({"object": "list", "data": cards}).encode()

    async def lists(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("200 OK", body))

    async def run() -> list[tuple[str, int]]:
        unknown = {"models": (), "max_model_len": None, **options}
        async with upstream(lists, **unknown) as engine:
            return [(card.id, engine.max_model_len) for card in await engine.models()]

    return asyncio.run(run())


def test_the_models_are_those_that_say_their_length_or_all() -> None:
    chat, embedder = {"id": "chat", "max_model_len": 50}, {"id": "embedder"}
    assert models_listed(chat, embedder) == [("chat", 50)]
    assert models_listed({"id": "a"}, {"id": "b"}, max_model_len=9) == [("a", 9), ("b", 9)]
    assert models_listed({"id": "a"}, {"id": "b"}, max_model_len=9, models=("b",)) == [("b", 9)]


@pytest.mark.parametrize(
    ("cards", "options", "words"),
    [([], {}, "lists no models"), ([{"id": "a"}], {}, "set its `max_model_len`"),
     ([{"id": "a", "max_model_len": 5}], {"models": ("b",)}, "has no model b"),
     ([{}], {}, "not in OpenAI's form")],
)  # fmt: skip
def test_a_start_that_cannot_learn_says_what_to_set(
    cards: list[dict[str, Any]], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        models_listed(*cards, **options)

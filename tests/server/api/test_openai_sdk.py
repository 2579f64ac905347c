"""The official SDK, told nothing but the base URL, still saying `gpt-4o-mini`."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ContentDeltaEvent, ContentDoneEvent

from server.engine.scripted import Script
from tests.server.api.bench import ANSWER, QUESTION, Bench, Running

ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": QUESTION}]}


def sync_client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)


def async_client(running: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)


def test_whole(shared: Running) -> None:
    with sync_client(shared) as client:
        raw = client.chat.completions.with_raw_response.create(**ASK)
    answer = raw.parse()
    assert raw.headers["x-rag-status"] == "hit"
    assert answer.model == "gpt-4o-mini"
    message = answer.choices[0].message
    assert message.content == ANSWER
    assert [a.url_citation.title for a in message.annotations or ()] == ["handbook.md"] * 2
    assert (answer.model_extra or {})["rag"]["cited"] is True


def test_streamed(shared: Running) -> None:
    with sync_client(shared) as client:
        chunks = list(
            client.chat.completions.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ANSWER
    assert (chunks[0].model_extra or {})["rag"]["status"] == "hit"
    assert chunks[-1].usage is not None


def test_the_stream_helper(shared: Running) -> None:
    with sync_client(shared) as client, client.chat.completions.stream(**ASK) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(e.delta for e in events if isinstance(e, ContentDeltaEvent)) == ANSWER
    assert [e.content for e in events if isinstance(e, ContentDoneEvent)] == [ANSWER]
    message = final.choices[0].message
    assert message.content == ANSWER
    assert len(message.annotations or ()) == 2
    assert final.choices[0].finish_reason == "stop"
    assert (final.model_extra or {})["rag"]["search_results"][0]["data"][0][
        "filename"
    ] == "handbook.md"


@pytest.mark.anyio
async def test_async(shared: Running) -> None:
    async with async_client(shared) as client:
        answer = await client.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == ANSWER
        parts = [
            chunk async for chunk in await client.chat.completions.create(**ASK, stream=True, n=2)
        ]
        async with client.chat.completions.stream(**ASK) as stream:
            final = await stream.get_final_completion()
    for index in (0, 1):
        text = [c.delta.content or "" for part in parts for c in part.choices if c.index == index]
        assert "".join(text) == ANSWER
    assert len(final.choices[0].message.annotations or ()) == 2


TEXT: dict[str, Any] = {"model": "gpt-4o-mini@docs", "prompt": QUESTION}


def test_text_completions(shared: Running) -> None:
    with sync_client(shared) as client:
        raw = client.completions.with_raw_response.create(**TEXT)
        answer = raw.parse()
        asked = client.completions.create(
            model="gpt-4o-mini", prompt=QUESTION, extra_body={"rag": {"vector_store_ids": ["docs"]}}
        )
        usage = {"include_usage": True}
        chunks = list(client.completions.create(**TEXT, stream=True, stream_options=usage))
    assert raw.headers["x-rag-status"] == "hit"
    assert answer.choices[0].text == ANSWER
    assert (answer.model_extra or {})["rag"]["cited"] is True
    assert (asked.model_extra or {})["rag"]["status"] == "hit"
    assert (chunks[0].model_extra or {})["rag"]["status"] == "hit"
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == ANSWER
    assert chunks[-1].usage is not None


@pytest.mark.anyio
async def test_async_text_completions(shared: Running) -> None:
    async with async_client(shared) as client:
        answer = await client.completions.create(**{**TEXT, "prompt": [QUESTION, "Tea?"]}, n=2)
        assert [choice.text for choice in answer.choices] == [ANSWER] * 4
        parts = [chunk async for chunk in await client.completions.create(**TEXT, stream=True)]
    assert "".join(choice.text for part in parts for choice in part.choices) == ANSWER
    assert parts[-1].choices[0].finish_reason == "stop"


def test_options_go_in_extra_body_and_headers(served: Running) -> None:
    with sync_client(served) as client:
        off = client.chat.completions.create(**ASK, extra_body={"rag": {"enabled": False}})
        assert "rag" not in (off.model_extra or {})
        one = client.chat.completions.create(**ASK, extra_headers={"X-RAG-Top-K": "1"})
        assert len((one.model_extra or {})["rag"]["search_results"][0]["data"]) == 1


def test_an_answer_is_the_next_requests_history(served: Running) -> None:
    with sync_client(served) as client:
        message = client.chat.completions.create(**ASK).choices[0].message
        history: list[Any] = [*ASK["messages"], message, *ASK["messages"]]
        again = client.chat.completions.create(model="gpt-4o-mini", messages=history)
    assert again.choices[0].message.content == ANSWER


def test_models(shared: Running) -> None:
    with sync_client(shared) as client:
        names = [model.id for model in client.models.list()]
        assert {"scripted", "all-MiniLM-L6-v2", "scripted@docs", "scripted@empty"} <= set(names)
        assert not any(name.endswith("@twin") for name in names)
        assert sum(name.startswith("scripted@vs_") for name in names) == 2
        for name in names:
            assert client.models.retrieve(name).id == name


def test_each_model_that_is_listed_can_be_asked(shared: Running, bench: Bench) -> None:
    catalog = bench.services.handover.current.catalog
    store = bench.run(catalog.create_store("local", "team@docs"))
    try:
        with sync_client(shared) as client:
            names = [model.id for model in client.models.list() if "@" in model.id]
            assert f"scripted@{store.id}" in names
            for name in names:
                client.chat.completions.create(**{**ASK, "model": name})
    finally:
        bench.run(catalog.delete_store(store.id))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "llama-9"}, openai.NotFoundError),
        ({"model": "scripted@nope"}, openai.NotFoundError),
        ({"extra_body": {"rag": {"filters": {}}}}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ],
)
def test_errors_are_the_sdks_own(
    shared: Running, fields: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    with sync_client(shared) as client, pytest.raises(error) as caught:
        client.chat.completions.create(**{**ASK, **fields})
    assert caught.value.param
    assert caught.value.type == "invalid_request_error"


def test_a_broken_stream_raises(bench: Bench) -> None:
    with (
        bench.serve(Script(answer="a b c d e", fail="midstream")) as running,
        sync_client(running) as client,
    ):
        with pytest.raises(openai.APIError, match="midstream"):
            list(client.chat.completions.create(**ASK, stream=True))
        with pytest.raises(openai.APIError, match="midstream"):
            list(client.completions.create(**TEXT, stream=True))
        with (
            pytest.raises(openai.APIError, match="midstream"),
            client.chat.completions.stream(**ASK) as stream,
        ):
            stream.until_done()


def test_a_key(bench: Bench) -> None:
    with bench.serve(api_keys=["sk-right"]) as running, sync_client(running) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**ASK)
        right = client.with_options(api_key="sk-right")
        assert right.chat.completions.create(**ASK).choices[0].message.content == ANSWER

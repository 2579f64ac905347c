"""Text completions over the real engine: bare vLLM's bytes with retrieval off, and what the model saw with it on."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from server.engine.base import Events
from tests.engine.real import FACT, MAX_MODEL_LEN, QUESTION, RealServer
from tests.engine.test_parity import events
from tests.engine.test_prompt import _special_ids
from tests.server.api.bench import eventually

pytestmark = pytest.mark.engine

MODEL = "SmolLM2-135M-Instruct"
GROUNDED = f"{MODEL}@facts"
#: The model has something to say after this; after a bare question it says nothing.
PROMPT = f"{QUESTION}\nThe lamp"
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts": {"prompt": [PROMPT, "Two and two are"]},
    "token_ids": {"prompt": [[504, 505, 506], [28]]},
    "echo": {"echo": True, "logprobs": 1},
    "n": {"n": 2, "temperature": 0.8, "seed": 7},
    "stop": {"stop": ["e"], "max_tokens": 24},
}

SEVERAL = ("prompts", "token_ids", "n")


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}


def post(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body, timeout=120)


def ask(real: RealServer, **fields: Any) -> dict[str, Any]:
    response = post(real.url, body_of(**{"model": GROUNDED, **fields}))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def normal(text: str) -> str:
    """Ids and times out, nothing else."""
    text = re.sub(r'"id":"cmpl-[^"]+"', '"id":"cmpl-X"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


def told(text: str) -> list[Any]:
    """What each choice says and how it ends, then what comes with no choice.

    Several interleave as they come, and tokens that come close together come in one chunk.
    """
    said: dict[int, dict[str, Any]] = {}
    rest = []
    for chunk in events(normal(text)):
        for choice in chunk["choices"]:
            before = said.get(choice["index"], {"text": ""})
            said[choice["index"]] = {**choice, "text": before["text"] + choice["text"]}
        if not chunk["choices"]:
            rest.append(chunk)
    return [said[index] for index in sorted(said)] + rest


#: A busy vLLM puts the tokens of one step and the next into one event; which ones is chance.
ATTEMPTS = 4


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("feature", FEATURES)
def test_off_is_bare_vllm(real: RealServer, feature: str, stream: bool) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    body = body_of(**FEATURES[feature], **streamed)
    same = told if stream and feature in SEVERAL else normal
    for _ in range(ATTEMPTS):
        ours, theirs = post(real.url, body), post(real.bare_url, body)
        assert theirs.status_code == ours.status_code == 200, ours.text
        if same(ours.text) == same(theirs.text):
            break
    assert same(ours.text) == same(theirs.text)
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert ours.headers["x-rag-status"] == "off"
    for _ in range(ATTEMPTS):
        renamed = post(real.url, {**body, "model": "gpt-4o-mini"}).text
        assert f'"model":"{MODEL}"' not in renamed
        again = same(renamed.replace('"gpt-4o-mini"', f'"{MODEL}"'))
        if again == same(theirs.text):
            break
    assert again == same(theirs.text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"}, {"max_tokens": -1}, {"logprobs": "many"}, {"prompt": None},
        {"suffix": "the end"}, {"prompt": "long " * 5000}, {"n": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
@pytest.mark.parametrize("model", [MODEL, GROUNDED])
def test_refusals_are_vllms_in_our_envelope(
    real: RealServer, wrong: dict[str, Any], model: str
) -> None:
    ours, theirs = (
        post(real.url, body_of(model=model, **wrong)),
        post(real.bare_url, body_of(**wrong)),
    )
    assert ours.status_code == theirs.status_code == 400, (ours.text, theirs.text)
    error = ours.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == (None if "long" not in str(wrong) else "context_length_exceeded")


@pytest.mark.parametrize("prompt", [QUESTION, [QUESTION, "Two and two are"]], ids=["one", "two"])
def test_a_schema_that_vllm_refuses_late_is_a_status_on_streams_too(
    real: RealServer, prompt: Any
) -> None:
    wrong = {"json": {"type": "object", "properties": {"day": {"type": "no such type"}}}}
    for model in (MODEL, GROUNDED):
        body = body_of(model=model, prompt=prompt, structured_outputs=wrong, stream=True)
        response = post(real.url, body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_fact_is_in_the_prompt_that_echo_shows(real: RealServer) -> None:
    answer = ask(real, echo=True, logprobs=0)
    (choice,) = answer["choices"]
    assert answer["rag"]["status"] == "hit"
    assert choice["text"].index(FACT) < choice["text"].index(QUESTION)
    tokens = choice["logprobs"]["tokens"]
    assert choice["logprobs"]["text_offset"][0] == 0
    assert "".join(tokens).startswith(choice["text"])
    # Grounding changes the prompt and nothing else: bare vLLM on that prompt writes the same words.
    prompt = choice["text"][: choice["text"].index(PROMPT) + len(PROMPT)]
    theirs = post(real.bare_url, body_of(prompt=prompt)).json()
    assert prompt + theirs["choices"][0]["text"] == choice["text"]
    assert theirs["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]


def test_each_prompt_has_its_own_sources(real: RealServer) -> None:
    prompts = [QUESTION, "How long is Morva tea steeped?"]
    body = body_of(model=GROUNDED, prompt=prompts, echo=True, rag={"max_num_results": 1}, n=2)
    body |= {"temperature": 0.8, "seed": 7}
    whole = ask(real, **body)
    chunks = events(post(real.url, {**body, "stream": True}).text)
    texts = [""] * 4
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    # The same seed is not the same answer where a batch's size moves a logit's last digit.
    for answered in (texts, [choice["text"] for choice in whole["choices"]]):
        assert [FACT in text for text in answered] == [True, True, False, False]
        assert ["eleven minutes" in text for text in answered] == [False, False, True, True]
    for rag in (whole["rag"], chunks[0]["rag"]):
        found = [page["data"][0]["filename"] for page in rag["search_results"]]
        assert found == ["lamp.md", "tea.txt"]


def test_forged_turns_add_no_control_token(real: RealServer) -> None:
    question = "What does the Quibble clause say?"
    honest = ask(real, prompt=question, model=MODEL, return_token_ids=True)
    forged = ask(real, prompt=question, return_token_ids=True)
    assert forged["rag"]["search_results"][0]["data"][0]["filename"] == "quibble.txt"
    special = real.run(_special_ids(real))
    counts = [
        sum(answer["choices"][0]["prompt_token_ids"].count(i) for i in special)
        for answer in (honest, forged)
    ]
    assert counts[0] == counts[1]


def test_budget_is_kept_at_the_last_token(real: RealServer) -> None:
    full = ask(real)["usage"]["prompt_tokens"]
    plain = ask(real, model=MODEL)["usage"]["prompt_tokens"]
    hits = 0
    for spare in range(0, full - plain + 60, 90):
        limit = MAX_MODEL_LEN - plain - spare
        answer = ask(real, max_tokens=limit, stop=["\n", " ", "e", "a"])
        assert answer["usage"]["prompt_tokens"] + limit <= MAX_MODEL_LEN
        hits += answer["rag"]["status"] == "hit"
    assert hits > 0
    default = ask(real, max_tokens=None)
    assert default["usage"]["completion_tokens"] <= 16


def test_leaving_a_stream_of_several_prompts_aborts_them_all(real: RealServer) -> None:
    processor = real.engine._client.output_processor  # type: ignore[attr-defined]

    async def start_and_leave() -> Events:
        request = body_of(prompt=["One", "Two"], max_tokens=1500, ignore_eos=True, stream=True)
        stream = await real.engine.stream(request, "cmpl-gone")
        await anext(stream)
        assert processor.get_num_unfinished_requests() == 2
        await stream.aclose()
        return stream

    left = real.run(start_and_leave())
    eventually(lambda: processor.get_num_unfinished_requests() == 0, 5)
    del left  # until here, so that nothing but its closing can have ended it

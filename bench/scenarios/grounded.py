"""Grounded: bare vLLM is given the very prompt that ours makes, so that the difference is the grounding."""

from __future__ import annotations

import secrets
from statistics import median
from typing import Any

from bench.corpus import question, twin
from bench.figures import Figure, difference
from bench.lab import Lab, Pair, alternate, body
from bench.load import ask, timed
from bench.stats import Target

TOKENS = 8
#: Questions a round: each costs three prefills, both sides' and the one that shows the prompt.
QUESTIONS = {"default": 2, "one source": 6}


async def run(lab: Lab) -> list[Figure]:
    """With the default sources, and with one: a short prefill has less noise to hide milliseconds in."""
    return [
        await _compared(lab, "TTFT", {}, QUESTIONS["default"]),
        await _compared(lab, "TTFT, one source", {"max_num_results": 1}, QUESTIONS["one source"]),
    ]


async def _compared(lab: Lab, title: str, rag: dict[str, Any], questions: int) -> Figure:
    pair = await lab.pair()
    prompts: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}

    async def one(name: str, number: int) -> float:
        if number not in prompts:
            first = number * questions + (40_000 if rag else 0)
            prompts[number] = [await both(lab, pair, first + i, rag) for i in range(questions)]
        ours = name == pair.ours.name
        url = pair.ours.url if ours else pair.bare.url
        bodies = [mine if ours else theirs for mine, theirs in prompts[number]]
        return median([(await timed(lab.client, url, each)).ttft_seconds for each in bodies]) * 1000

    rounds = await alternate((pair.bare.name, pair.ours.name), lab.rounds, one)
    sides = [(name, rounds[name]) for name in (pair.ours.name, pair.bare.name)]
    return difference(title, "ms", sides[0], sides[1], Target(high=10))


async def both(
    lab: Lab, pair: Pair, number: int, rag: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A grounded request for ours, and for bare vLLM the prompt that came of it.

    Raises RuntimeError when the two prompts are not equally long.
    """
    asked = question(number)
    mine = {**body(asked, TOKENS), "model": pair.ours.model, "rag": rag}
    looked_up = [{"role": "user", "content": twin(asked)}]
    probe = {**_fresh(mine), "messages": looked_up, "rag": {**rag, "include_text": True}}
    if not lab.scripted:
        probe["return_prompt_text"] = True
    answer = (await ask(lab.client, pair.ours.url, probe)).json()
    if answer["rag"]["status"] != "hit":
        raise RuntimeError(f"the question found nothing: {answer['rag']}")
    content = user_message(answer).removesuffix(twin(asked)) + asked
    theirs = {**mine, "model": pair.bare.model, "messages": [{"role": "user", "content": content}]}
    del theirs["rag"]
    if not lab.scripted:
        await _check(lab, pair, theirs, answer["usage"]["prompt_tokens"])
    return mine, theirs


async def _check(lab: Lab, pair: Pair, theirs: dict[str, Any], tokens: int) -> None:
    asked = {"model": theirs["model"], "messages": theirs["messages"]}
    told = (await lab.client.post(f"{pair.bare.url}/tokenize", json=asked)).json()
    if told["count"] != tokens:
        raise RuntimeError(f"the two prompts differ: {told['count']} and {tokens} tokens")


def user_message(answer: dict[str, Any]) -> str:
    """The last user message as the engine read it; the scripted engine tells only what was found."""
    if "prompt_text" in answer:
        prompt: str = answer["prompt_text"]
        return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    page = answer["rag"]["search_results"][0]
    texts = [part["text"] for result in page["data"] for part in result["content"]]
    return "\n\n".join([*texts, *page["search_query"]])


def _fresh(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "max_tokens": 1, "cache_salt": secrets.token_hex(8)}

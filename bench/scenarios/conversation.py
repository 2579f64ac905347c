"""Turn 6 of a conversation: context before the last question, or in a system prompt that changes each turn.

Both have prefix caching on, and ours keeps the sources of earlier turns where they were (`sticky`). The words
are given, the same for both; only where the sources stand differs. A conversation stays with one subject.
"""

from __future__ import annotations

import secrets
from typing import Any

from bench.corpus import question, story, twin
from bench.figures import Figure, ratio
from bench.lab import Lab, Pair, alternate, body
from bench.load import ask, timed
from bench.scenarios.grounded import user_message
from bench.stats import Target

FOLLOW_UPS = (
    "Which crew did that?",
    "What did it cost?",
    "Was it ever insured, and by whom?",
    "When was it last painted?",
    "And who sold it in the end?",
)
ANSWER_SENTENCES = 14
Messages = list[dict[str, str]]


async def run(lab: Lab) -> list[Figure]:
    pair = await lab.pair()

    async def one(name: str, number: int) -> float:
        if name == pair.ours.name:
            return await _ours(lab, pair, number)
        return await _system_prompt(lab, pair, number)

    rounds = await alternate(("context in the system prompt", pair.ours.name), lab.rounds, one)
    sides = [(name, rounds[name]) for name in (pair.ours.name, "context in the system prompt")]
    return [
        ratio(f"TTFT of turn {1 + len(FOLLOW_UPS)}", "ms", sides[0], sides[1], Target(high=1 / 3))
    ]


def turns(number: int) -> list[Messages]:
    """The messages of each turn of conversation `number`, from the first question on."""
    messages: Messages = [{"role": "system", "content": "You are the archive's assistant."}]
    each = []
    for turn, asked in enumerate((question(number), *FOLLOW_UPS)):
        messages = [*messages, {"role": "user", "content": asked}]
        each.append(messages)
        told = story(number * 100 + turn, ANSWER_SENTENCES)
        messages = [*messages, {"role": "assistant", "content": told}]
    return each


async def _ours(lab: Lab, pair: Pair, number: int) -> float:
    salt, ttft = secrets.token_hex(8), 0.0
    for messages in turns(number):
        request = {**_request(messages, salt), "model": pair.ours.model}
        ttft = (await timed(lab.client, pair.ours.url, request)).ttft_seconds
    return ttft * 1000


async def _system_prompt(lab: Lab, pair: Pair, number: int) -> float:
    salt, ttft = secrets.token_hex(8), 0.0
    for messages in turns(number)[
        -2:
    ]:  # where all changes from its beginning, the turns before leave nothing
        context = await _context(lab, pair, messages)
        system = {"role": "system", "content": f"{messages[0]['content']}\n\n{context}"}
        request = {**_request([system, *messages[1:]], salt), "model": pair.bare.model}
        ttft = (await timed(lab.client, pair.bare.url, request)).ttft_seconds
    return ttft * 1000


async def _context(lab: Lab, pair: Pair, messages: Messages) -> str:
    """The sources that ours finds for the last question, as it would inject them."""
    asked = {**messages[-1], "content": twin(messages[-1]["content"])}
    request = {**_request([*messages[:-1], asked], secrets.token_hex(8)), "model": pair.ours.model}
    request |= {"max_tokens": 1, "rag": {"include_text": True, "sticky": False}}
    if not lab.scripted:
        request["return_prompt_text"] = True
    answer = (await ask(lab.client, pair.ours.url, request)).json()
    return user_message(answer).removesuffix(asked["content"])


def _request(messages: Messages, salt: str) -> dict[str, Any]:
    return {**body("", 4), "messages": messages, "cache_salt": salt}

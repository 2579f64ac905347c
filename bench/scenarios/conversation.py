"""Turn 6 of a conversation: context before the last question, or in a system prompt that changes each turn.

All have prefix caching on; ours is asked without and with `sticky`, which keeps the sources of earlier turns
where they were. The words are given, the same for all; only where the sources stand differs. A conversation
stays with one subject.
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
SYSTEM_PROMPT = "context in the system prompt"
Messages = list[dict[str, str]]


async def run(lab: Lab) -> list[Figure]:
    pair = await lab.pair()

    sticky = f"{pair.ours.name}, sticky"

    async def one(name: str, number: int) -> float:
        if name == SYSTEM_PROMPT:
            return await _system_prompt(lab, pair, number)
        return await _ours(lab, pair, number, sticky=name == sticky)

    sides = (pair.ours.name, sticky)
    rounds = await alternate((SYSTEM_PROMPT, *sides), lab.rounds, one)
    base = (SYSTEM_PROMPT, rounds[SYSTEM_PROMPT])
    what = f"TTFT of turn {1 + len(FOLLOW_UPS)}"
    return [
        ratio(f"{what}, {side}", "ms", (side, rounds[side]), base, Target(high=1 / 3))
        for side in sides
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


async def _ours(lab: Lab, pair: Pair, number: int, *, sticky: bool) -> float:
    salt, ttft = secrets.token_hex(8), 0.0
    for messages in turns(number):
        request = {**_request(messages, salt), "model": pair.ours.model, "rag": {"sticky": sticky}}
        ttft = (await timed(lab.client, pair.ours.url, request)).ttft_seconds
    return ttft * 1000


async def _system_prompt(lab: Lab, pair: Pair, number: int) -> float:
    salt, ttft = secrets.token_hex(8), 0.0
    # Where all changes from its beginning, the turns before the last two leave nothing.
    for messages in turns(number)[-2:]:
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

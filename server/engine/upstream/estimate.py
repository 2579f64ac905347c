"""Token counts without the tokenizer: an upper estimate, so that a budget kept by it is kept. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: Letters go two to a token at worst in running text (four are usual); digits and signs one each.
LETTERS = re.compile(r"[A-Za-z]+")
#: Role, turn markers and line breaks of the common chat templates take four to seven.
MESSAGE_TOKENS = 8
#: An image part; models spend some hundreds to two thousand.
MEDIA_TOKENS = 2048


def estimate_text(text: str) -> int:
    """Tokens of a text, rather too many than too few; beyond ASCII each byte counts as one."""
    letters = sum((len(run) + 1) // 2 for run in LETTERS.findall(text))
    others = LETTERS.sub("", text)
    return letters + len(others.replace(" ", "").encode(errors="replace")) + others.count("  ")


def estimate_prompt(body: Mapping[str, Any]) -> int:
    """Tokens of the prompt that a request renders to, tools included."""
    tokens = MESSAGE_TOKENS + _content(body.get("prompt"))
    for message in body.get("messages") or ():
        tokens += MESSAGE_TOKENS + _content(message.get("content"))
        if message.get("tool_calls"):
            tokens += estimate_text(json.dumps(message["tool_calls"], ensure_ascii=False))
    for name in ("tools", "response_format"):
        if body.get(name):
            tokens += estimate_text(json.dumps(body[name], ensure_ascii=False))
    return tokens


def _content(content: Any) -> int:
    if isinstance(content, str):
        return estimate_text(content)
    parts = content if isinstance(content, list) else ()
    return sum(
        estimate_text(part["text"]) if isinstance(part.get("text"), str) else MEDIA_TOKENS
        for part in parts
        if isinstance(part, dict)
    )

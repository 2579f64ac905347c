"""auth: keys and signatures, apart from HTTP."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from retrieval.types import Passage
from server.auth import LINK_SECONDS, Keys, Links, tenants_that_ask
from server.errors import NotFound, Unauthorized

SECRET = b"s" * 32
DAY = 86400


def keys(*entries: str, secret: bytes = SECRET) -> Keys:
    return Keys([SecretStr(entry) for entry in entries], secret)


def test_without_keys_everyone_is_local() -> None:
    assert not keys()
    caller = keys().caller(None)
    assert (caller.tenant, caller.cache_salt) == ("local", None)


def test_a_key_is_its_tenants() -> None:
    both = keys("acme:k1", "a:b:k2", "k3")
    tenants = [both.caller(f"Bearer {key}").tenant for key in ("k1", "k2", "k3")]
    assert tenants == ["acme", "a:b", "local"]
    salts = {both.caller(f"Bearer {key}").cache_salt for key in ("k1", "k2", "k3")}
    assert len(salts) == 3
    assert None not in salts


def test_who_may_ask_of_all() -> None:
    assert tenants_that_ask([]) == {"local"}
    given = [SecretStr(entry) for entry in ("acme:k1", "acme:k2", "globex:k3")]
    assert tenants_that_ask(given) == {"acme", "globex"}


def test_two_keys_of_a_tenant_share_its_cache_and_no_server_does() -> None:
    both = keys("acme:k1", "acme:k2")
    one, two = both.caller("Bearer k1"), both.caller("Bearer k2")
    assert (one.tenant, one.cache_salt) == (two.tenant, two.cache_salt)
    assert one.key != two.key
    other = keys("acme:k1", secret=b"t" * 32)
    assert both.caller("Bearer k1").cache_salt != other.caller("Bearer k1").cache_salt


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "k1", "Basic k1", "Bearer k", "Bearer é"]
)
def test_no_key_no_entry(header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        keys("acme:k1").caller(header)
    assert "k1" not in str(caught.value)


PASSAGE = Passage("file-1", "ab" * 32, 7, "a.md", "text")
PARTS = ("file-1", "ab" * 8, "7")


def query(url: str) -> dict[str, str]:
    from urllib.parse import parse_qsl, urlsplit

    return dict(parse_qsl(urlsplit(url).query))


def test_unsigned_links_are_bare() -> None:
    links = Links(SECRET, signed=False)
    url = f"http://h/v1/rag/passages/{PASSAGE.id}"
    assert links.url("http://h", "local", PASSAGE, 0) == url
    assert links.tenant({}, PARTS, 0) is None


def test_a_signed_link_names_its_tenant_until_it_ends() -> None:
    links = Links(SECRET, signed=True)
    url = links.url("http://h", "acme", PASSAGE, now=10.5 * DAY)
    assert url == links.url("http://h", "acme", PASSAGE, now=10.9 * DAY), "the same all day"
    end = 10 * DAY + LINK_SECONDS
    assert links.tenant(query(url), PARTS, end) == "acme"
    with pytest.raises(NotFound):
        links.tenant(query(url), PARTS, end + 1)


@pytest.mark.parametrize("place", range(3))
def test_a_signature_covers_every_part(place: int) -> None:
    links = Links(SECRET, signed=True)
    url = links.url("http://h", "acme", PASSAGE, now=0)
    parts = [part + "0" if i == place else part for i, part in enumerate(PARTS)]
    with pytest.raises(NotFound):
        links.tenant(query(url), parts, 0)
    with pytest.raises(NotFound):
        Links(b"t" * 32, signed=True).tenant(query(url), PARTS, 0)


def test_parts_cannot_be_shifted_into_each_other() -> None:
    links = Links(SECRET, signed=True)
    signed = query(links.url("http://h", "acme", PASSAGE, now=0))
    shifted = {
        **signed,
        "tenant": signed["tenant"] + signed["expires"][:1],
        "expires": signed["expires"][1:],
    }
    with pytest.raises(NotFound):
        links.tenant(shifted, PARTS, 0)

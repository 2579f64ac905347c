"""Who may come in: hosts, origins, keys, tenants, and which routes there are at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from server.api.unbuilt import PREFIXES
from tests.server.api.bench import QUESTION, ROUTE, Bench, Running, chat
from tests.server.api.test_bad_input import error_of

#: Every route there is. One more, by us or by an engine's upgrade, must be put here on purpose.
OPEN = {("GET", "/health"), ("GET", "/ready")}
SIGNED = {("GET", "/v1/rag/passages/{file_id}/{content_hash}/{chunk}")}
KEYED = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/vector_stores/{vector_store_id}/search"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model:path}"),
    ("GET", "/v1/rag/receipts/{receipt_id:path}"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/version"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/invocations"),
    ("POST", "/v1/chat/completions/batch"),
    *(
        (method, prefix + rest)
        for method in ("GET", "POST", "DELETE")
        for prefix in PREFIXES
        for rest in ("", "/{rest:path}")
    ),
}
ALL = OPEN | SIGNED | KEYED


def routes_of(running: Running) -> Iterator[tuple[str, str]]:
    for route in running.app.routes:
        assert isinstance(route, APIRoute), f"{route} is no route of ours"
        for method in route.methods:
            yield method, route.path


def filled(path: str) -> str:
    for name in ("file_id", "content_hash", "chunk", "vector_store_id"):
        path = path.replace(f"{{{name}}}", "0")
    for name in ("model", "rest", "receipt_id"):
        path = path.replace(f"{{{name}:path}}", "x")
    return path


def test_there_is_no_other_route(shared: Running) -> None:
    assert set(routes_of(shared)) == ALL


@pytest.fixture(scope="module")
def keyed(bench: Bench) -> Iterator[Running]:
    """Two tenants, and no default store that would be either's."""
    keys = ["acme:sk-acme", "globex:sk-globex", "sk-local"]
    with bench.serve(api_keys=keys, default_store=None) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


WRONG: list[dict[str, Any]] = [
    {},
    bearer("wrong"),
    {"authorization": "Bearer"},
    bearer("acme:sk-acme"),
    bearer("sk-acm"),
    {"authorization": "sk-acme"},
    {"authorization": "Basic sk-acme"},
    {"authorization": "Bearer é".encode()},
    {"x-api-key": "sk-acme"},
]


@pytest.mark.parametrize("headers", WRONG, ids=range(len(WRONG)))
def test_every_route_but_two_asks_for_a_key(keyed: Running, headers: dict[str, Any]) -> None:
    for method, path in sorted(KEYED | SIGNED):
        response = keyed.client.request(method, filled(path), headers=headers)
        assert response.status_code == 401, (method, path)
        error = error_of(response)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert "x-should-retry" not in response.headers
    for method, path in OPEN:
        assert keyed.client.request(method, path, headers=headers).status_code == 200


def test_without_a_key_no_body_is_read(keyed: Running) -> None:
    assert keyed.client.post(ROUTE, content=b"not json").status_code == 401
    assert keyed.metric("requests_rejected_total", reason="auth") > 0


@pytest.mark.parametrize("key", ["sk-acme", "sk-globex", "sk-local"])
def test_a_key_opens(keyed: Running, key: str) -> None:
    assert keyed.client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert keyed.client.get("/v1/models", headers={"authorization": f"bearer  {key}"}).is_success


def test_tenants_do_not_see_each_other(keyed: Running, bench: Bench) -> None:
    stores = bench.run(bench.services.handover.current.catalog.list_stores("acme"))
    mine = bearer("sk-acme")
    for ref in ("acme-docs", stores[0].id):
        ask = {"model": f"scripted@{ref}", "headers": mine}
        found = keyed.ask("Which word opens the acme vault?", **ask)
        assert found.headers["x-rag-status"] == "hit"
        assert "acme-quibble" in keyed.prompt
        before = len(keyed.engine.seen.bodies)
        for other in ("sk-globex", "sk-local"):
            ways: list[dict[str, Any]] = [
                {"model": f"scripted@{ref}"},
                {"rag": {"vector_store_ids": [ref]}},
                {"tools": [{"type": "file_search", "vector_store_ids": [ref]}]},
            ]
            for way in ways:
                hidden = keyed.ask("Which word opens the acme vault?", bearer(other), **way)
                unknown = keyed.ask("x", bearer(other), model="scripted@no-such-store")
                assert hidden.status_code == unknown.status_code == 404
                assert error_of(hidden)["code"] == error_of(unknown)["code"] == "store_not_found"
                assert "acme-quibble" not in hidden.text
        assert len(keyed.engine.seen.bodies) == before
    names = {
        key: {
            card["id"]
            for card in keyed.client.get("/v1/models", headers=bearer(key)).json()["data"]
        }
        for key in ("sk-acme", "sk-globex", "sk-local")
    }
    assert "scripted@acme-docs" in names["sk-acme"] - names["sk-globex"] - names["sk-local"]
    assert "scripted@docs" in names["sk-local"] - names["sk-acme"] - names["sk-globex"]
    assert (
        keyed.client.get("/v1/models/scripted@acme-docs", headers=bearer("sk-globex")).status_code
        == 404
    )


def test_a_default_store_of_another_tenant_is_no_store(bench: Bench) -> None:
    with bench.serve(api_keys=["acme:sk-acme"], key="sk-acme") as running:
        response = running.ask()
        assert (response.status_code, response.headers["x-rag-status"]) == (200, "miss")
        assert response.json()["rag"]["reason"] == "no_store"
        assert running.prompt == QUESTION


def test_each_tenant_has_its_own_cache(keyed: Running) -> None:
    salts = {}
    for key in ("sk-acme", "sk-globex"):
        for own in (None, "mine"):
            assert keyed.ask("Hi", bearer(key), cache_salt=own).status_code == 200
            salts[key, own] = keyed.engine.seen.bodies[-1]["cache_salt"]
    assert len(set(salts.values())) == 4
    assert all(len(salt) >= 32 for salt in salts.values())
    keyed.ask("Hi", bearer("sk-acme"))
    assert keyed.engine.seen.bodies[-1]["cache_salt"] == salts["sk-acme", None], "stable"
    for key in ("sk-acme", "sk-globex"):
        assert salts[key, None] not in str(keyed.ask("Hi", bearer(key)).json())


def test_without_keys_there_is_no_salt(served: Running) -> None:
    served.ask()
    assert "cache_salt" not in served.engine.seen.bodies[-1]


# --- passage URLs -----------------------------------------------------------------------------------


def citation_url(running: Running, key: str) -> str:
    answer = running.ask(
        "Which word opens the vault?", bearer(key), model=f"scripted@{key[3:]}-docs"
    )
    url: str = answer.json()["choices"][0]["message"]["annotations"][0]["url_citation"]["url"]
    return url


def test_a_signed_url_needs_no_key(keyed: Running) -> None:
    response = keyed.client.get(citation_url(keyed, "sk-acme"))
    assert response.status_code == 200
    assert "acme-quibble" in response.json()["text"]


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "0" * 32},
        {"signature": "é"},
        {"signature": ""},
        {"tenant": "globex"},
        {"tenant": ""},
        {"expires": "99999999999"},
        {"expires": "nan"},
        {"expires": ""},
    ],
)
def test_a_changed_url_is_not_found(keyed: Running, change: dict[str, str]) -> None:
    url = httpx.URL(citation_url(keyed, "sk-acme"))
    response = keyed.client.get(url.copy_merge_params(change))
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


def test_a_signature_is_for_one_passage(keyed: Running) -> None:
    acme, globex = (httpx.URL(citation_url(keyed, key)) for key in ("sk-acme", "sk-globex"))
    assert keyed.client.get(globex.copy_with(query=acme.query)).status_code == 404
    assert keyed.client.get(acme.path).status_code == 401
    assert keyed.client.get(acme.path, headers=bearer("sk-acme")).status_code == 200
    assert keyed.client.get(acme.path, headers=bearer("sk-globex")).status_code == 404


def test_a_link_ends_after_its_days(keyed: Running) -> None:
    links = keyed.services.handover.current.links
    url = httpx.URL(citation_url(keyed, "sk-acme"))
    parts, query = url.path.split("/")[-3:], dict(url.params)
    expires = float(query["expires"])
    assert links.tenant(query, parts, expires - 1) == "acme"
    with pytest.raises(Exception, match="not valid"):
        links.tenant(query, parts, expires + 1)


def test_a_tenants_name_may_be_anything(bench: Bench) -> None:
    with bench.serve(api_keys=["a&b=c d/é:sk-odd"], default_store=None) as running:
        links = running.services.handover.current.links
        hit = bench.run(bench.services.handover.current.retriever.retrieve(*query_of(bench)))
        url = httpx.URL(links.url("http://h", "a&b=c d/é", hit.candidates[0].passage, 0))
        assert links.tenant(dict(url.params), url.path.split("/")[-3:], 0) == "a&b=c d/é"


def query_of(bench: Bench) -> tuple[Any, Any]:
    from retrieval.trace import Trace
    from retrieval.types import Query

    stores = bench.run(bench.services.handover.current.catalog.list_stores("local"))
    return Query(QUESTION, tuple(s.id for s in stores if s.name == "docs"), 4), Trace()


def test_the_public_url_is_where_citations_lead(bench: Bench) -> None:
    with bench.serve(public_url="https://rag.example/base/") as running:
        citation = running.ask().json()["choices"][0]["message"]["annotations"][0]["url_citation"]
        assert citation["url"].startswith("https://rag.example/base/v1/rag/passages/file-")


# --- hosts and origins ------------------------------------------------------------------------------

TRIED = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("POST", ROUTE),
    ("GET", "/none"),
]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[", "127.0.0.2"]
)
def test_a_foreign_host_is_refused_everywhere(served: Running, host: str) -> None:
    for method, path in TRIED:
        response = served.client.request(
            method, path, headers={"host": host}, json=chat() if method == "POST" else None
        )
        assert response.status_code == 403
        assert error_of(response)["param"] == "Host"
    assert not served.engine.seen.bodies


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8000"])
def test_loopback_names_are_answered(shared: Running, host: str) -> None:
    assert shared.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://localhost.evil.example",
        "http://[",
        "http://localhost:1",
        "file://",
    ],
)
def test_a_foreign_origin_is_refused_everywhere(served: Running, origin: str) -> None:
    for method, path in TRIED:
        response = served.client.request(
            method, path, headers={"origin": origin}, json=chat() if method == "POST" else None
        )
        assert response.status_code == 403
        assert error_of(response)["param"] == "Origin"
        assert "access-control-allow-origin" not in response.headers
    assert not served.engine.seen.bodies


def test_the_servers_own_pages_may(shared: Running) -> None:
    assert shared.client.get("/health", headers={"origin": shared.url}).status_code == 200


def test_hosts_and_origins_can_be_allowed(bench: Bench) -> None:
    page = "https://app.example"
    with bench.serve(allowed_hosts=["box.lan"], allowed_origins=[page]) as running:
        assert running.client.get("/health", headers={"host": "box.lan:80"}).status_code == 200
        response = running.ask(headers={"origin": page})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == page
        assert "x-rag-status" in response.headers["access-control-expose-headers"]
        ask = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        preflight = running.client.options(ROUTE, headers={"origin": page, **ask})
        assert preflight.status_code == 200
        foreign = running.client.options(ROUTE, headers={"origin": "http://evil.example", **ask})
        assert foreign.status_code == 403
        assert error_of(foreign)["param"] == "Origin"
        refused = running.ask(headers={"origin": "http://evil.example"})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_no_cors_unless_configured(shared: Running) -> None:
    response = shared.client.get("/health", headers={"origin": shared.url})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_generating_routes_of_the_engine_can_be_opened(bench: Bench) -> None:
    with bench.serve(expose_engine_routes=True) as running:
        response = running.client.post("/v1/messages", json={})
        assert response.status_code == 404  # open, and the scripted engine has none
        assert "expose_engine_routes" not in error_of(response)["message"]
        assert running.client.get("/version").status_code == 200
        counted = {
            outcome: running.metric("requests_total", outcome=outcome)
            for outcome in ("ok", "rejected", "error")
        }
        assert counted == {"ok": 1, "rejected": 1, "error": 0}

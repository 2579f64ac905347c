"""receipt_ring: what is kept of which request, for how long, and for whom."""

from __future__ import annotations

from dataclasses import replace

from retrieval.types import Candidate, Drop, Passage
from server.account import Account, Asked, account_bytes, to_keep
from server.plan import Plan
from server.receipt_ring import ReceiptRing
from server.receipts import Receipt, summed

MIB = 2**20
PLAN = Plan(
    model="m", engine_model="m", stream=False, store_refs=("docs",), question="", also=(), weights=None,
    question_index=0, top_k=4, score_threshold=0.0, max_context_tokens=100, answer_tokens=10, on_error="skip",
    on_empty="answer", include_text=False, footer=False, sticky=False, chosen_in=None,
)  # fmt: skip


def candidate(chunk: int, text: str = "secret text") -> Candidate:
    return Candidate(Passage("file-1", "a" * 64, chunk, "a.md", text, page=2), 0.5, {"search": 0.4})


def receipt(text: str = "secret text", **fields: object) -> Receipt:
    one, two = candidate(0, text), candidate(1, text)
    made = Receipt(
        "hit",
        lambda _: text,
        sources=(one,),
        candidates=(one, two),
        dropped=(Drop(two, "duplicate"),),
    )
    return replace(made, **fields)


def account(number: int, made: Receipt | None = None, outcome: str | None = "ok") -> Account:
    asked = Asked(f"chatcmpl-{number}", f"req-{number}", None, 7, "/r")
    return Account(asked, PLAN, made or receipt(), outcome, {}, None, 4096)


def keep(ring: ReceiptRing, made: Account, tenant: str = "local") -> None:
    ring.begin(tenant, made.asked, lambda: made)()


def found(ring: ReceiptRing, receipt_id: str, tenant: str = "local") -> str | None:
    got = ring.find(tenant, receipt_id)
    return got and got.asked.completion_id


def test_the_oldest_go_first() -> None:
    ring = ReceiptRing(3, MIB)
    for number in range(5):
        keep(ring, account(number))
    assert len(ring) == 3
    for number, there in enumerate([False, False, True, True, True]):
        for name in (f"chatcmpl-{number}", f"req-{number}"):
            assert found(ring, name) == (f"chatcmpl-{number}" if there else None)
    assert len(ring._aliases) == 3


def test_bytes_are_a_bound_too() -> None:
    size = account_bytes(to_keep(account(0)))
    ring = ReceiptRing(100, 2 * size + 100)
    for number in range(4):
        keep(ring, account(number))
    assert (len(ring), ring.size_bytes) == (2, 2 * size)
    keep(ring, account(9, receipt(question="x" * 3 * size)))
    assert found(ring, "chatcmpl-9") is None
    assert found(ring, "chatcmpl-3") == "chatcmpl-3"
    assert ring._aliases.keys() == {("local", "req-2"), ("local", "req-3")}


def test_none_are_kept() -> None:
    for ring in (ReceiptRing(0, MIB), ReceiptRing(10, 0)):
        keep(ring, account(0))
        assert (len(ring), found(ring, "req-0"), ring.size_bytes) == (0, None, 0)


def test_a_request_id_that_comes_again_names_the_latest() -> None:
    ring = ReceiptRing(2, MIB)
    one, two = account(1), account(2)
    two = replace(two, asked=replace(two.asked, request_id="req-1"))
    keep(ring, one)
    keep(ring, two)
    assert found(ring, "req-1") == "chatcmpl-2"
    assert found(ring, "chatcmpl-1") == "chatcmpl-1"
    keep(ring, account(3))
    assert found(ring, "req-1") == "chatcmpl-2"


def test_tenants_are_apart() -> None:
    ring = ReceiptRing(9, MIB)
    keep(ring, account(1), "acme")
    keep(ring, replace(account(2), asked=replace(account(2).asked, request_id="req-1")), "globex")
    assert found(ring, "req-1", "acme") == "chatcmpl-1"
    assert found(ring, "req-1", "globex") == "chatcmpl-2"
    assert found(ring, "chatcmpl-1", "globex") is None


def test_a_request_that_runs_is_seen_as_it_is_now() -> None:
    ring, known = ReceiptRing(1, MIB), [account(1, outcome=None)]
    ended = ring.begin("local", known[0].asked, lambda: known[-1])
    for outcome in (None, "error"):
        known.append(account(1, outcome=outcome))
        running = ring.find("local", "req-1")
        assert running is not None
        assert running.outcome == outcome
    ended()
    known.append(account(1, outcome="later"))
    kept = ring.find("local", "req-1")
    assert kept is not None
    assert kept.outcome == "error"


def test_one_that_was_pushed_out_while_it_ran_comes_back_when_it_ends() -> None:
    ring = ReceiptRing(1, MIB)
    ended = ring.begin("local", account(1).asked, lambda: account(1))
    keep(ring, account(2))
    assert found(ring, "chatcmpl-1") is None
    ended()
    assert found(ring, "chatcmpl-1") == "chatcmpl-1"
    assert found(ring, "chatcmpl-2") is None


def test_texts_are_kept_only_for_those_who_asked() -> None:
    ring = ReceiptRing(9, MIB)
    keep(ring, account(1))
    keep(ring, account(2, summed(receipt(sources=(), candidates=()), [receipt()])))
    keep(ring, account(3, receipt(include_text=True)))
    for name, there in (("req-1", False), ("req-2", False), ("req-3", True)):
        kept = ring.find("local", name)
        assert kept is not None
        assert ("secret text" in repr(kept)) is there
    kept = ring.find("local", "req-1")
    assert kept is not None
    assert kept.receipt.link(kept.receipt.sources[0].passage) == "file-1/aaaaaaaaaaaaaaaa/0"
    assert kept.receipt.sources[0] is kept.receipt.candidates[0]
    assert kept.receipt.candidates[0].passage.page == 2

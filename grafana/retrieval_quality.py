"""*Retrieval quality*: does the search still find what it found, and what becomes of it."""

from __future__ import annotations

from grafana.panels import Dashboard, Panel, Query, Row, Variable, coloured, distribution, quantiles
from grafana.promql import quantile, rate, series, share

RETRIEVALS = "groundwire_retrievals_total"
#: Requests that were to be grounded.
GROUNDED = 'status!="off"'
#: Good enough, and left out for want of room.
NO_PLACE = "over_budget|no_room"
STORE = 'store=~"$store"'
SCORE = "groundwire_retrieval_score"
EMBEDDER_CHANGED = (
    "If the embedder or the chunking was changed, `groundwire reindex` (a published index: `docs/published.md`); if "
    "documents went away, *Ingestion and index*."
)

FOUND = Row(
    "Is anything found",
    [
        Panel(
            "stack", "Retrievals", [Query(rate(RETRIEVALS, "status"), "{{status}}")], unit="reqps",
            colours=coloured("hit", "miss", "degraded", "off"),
            shows="Requests by what retrieval gave them: `hit`, `miss` (searched, nothing good enough), `degraded` "
            "(retrieval failed or was "
            "too slow, the answer went without), `off`.",
            bad="Any `degraded`. `miss` that grows.",
            do="`degraded`: `/ready` and the log. `miss`: see the scores below, and a receipt of such a request.",
        ),
        Panel(
            "lines", "Empty and degraded searches",
            [Query(share(RETRIEVALS, 'status="miss"', GROUNDED), "miss"),
            Query(share(RETRIEVALS, 'status="degraded"', GROUNDED), "degraded")],
            unit="percentunit", warn=0.2, alarm=0.5,
            shows="Of the requests that were to be grounded: the share without any source.",
            bad="`miss` above its usual height: questions have moved away from the documents, or documents from the "
            "questions. "
            "`degraded` above 5 %: `GroundwireRetrievalDegraded`.",
            do=f"Look at the questions of some receipts. {EMBEDDER_CHANGED}",
        ),
        Panel(
            "lines", "Best score of a search, p10 and p50",
            [Query(quantile(q, SCORE, "kind"), f"{{{{kind}}}} p{q * 100:.0f}") for q in (0.1, 0.5)],
            unit="percentunit",
            shows="How good the best hit of a search was: `dense` (cosine), `fused` (0 to 1), `rerank`.",
            bad="A step down, from one hour to the next: the embedder, its prefix or the chunking was changed. A "
            "slow fall: other questions.",
            do=EMBEDDER_CHANGED,
        ),
    ],
)  # fmt: skip

SCORES = Row(
    "Scores, each bucket",
    [
        Panel(
            "heatmap", title, distribution(SCORE, f'kind="{kind}"'), unit="percentunit",
            shows=f"How many searches had which best score: {what}.", bad=bad, do=do,
        )
        for kind, title, what, bad, do in (
            ("dense", "Best cosine", "the cosine of question and best passage",
             "A band near `min_similarity` (0.15): hits and misses by chance.", f"Set `min_similarity` between the "
             f"two bands. {EMBEDDER_CHANGED}"),
            ("fused", "Best fused score", "after both rankings became one, 1 being first in both",
             "Much below 0.6: keywords and vectors disagree on what is best.", "See *Quality* in the docs on weights "
             "and `rrf_k`, and measure with `groundwire eval`."),
            ("rerank", "Best reranked score", "the cross-encoder's, where one is set",
             "All near 0: it finds nothing relevant.", "Another reranker, or more `rerank_candidates`."),
        )
    ],
)  # fmt: skip

PACKED = Row(
    "What becomes of what was found",
    [
        Panel(
            "stack", "Candidates by outcome", [Query(rate("groundwire_passages_total", "outcome"), "{{outcome}}")],
            shows="Passages that retrieval ranked: `packed` into the prompt, or why they were left out.",
            bad="`no_room` or `over_budget`: the model's window or `max_context_tokens` is too small for what was "
            "found. `duplicate`: the same text many times.",
            do="A larger window or budget; ingest near copies once. A receipt says it passage by passage.",
        ),
        Panel(
            "lines", "Left out for want of room",
            [Query(share("groundwire_passages_total", f'outcome=~"{NO_PLACE}"', f'outcome=~"packed|{NO_PLACE}"'),
                   "left out")],
            unit="percentunit", warn=0.25, alarm=0.5,
            shows="Of the passages that were good enough and not too many: the share that did not fit.",
            bad="Above a quarter, answers often lack what was found.",
            do="Raise `max_context_tokens` or `--max-model-len`, or lower `chunk_tokens` and reindex.",
        ),
        Panel(
            "lines", "Tokens that sources take", quantiles("groundwire_context_tokens"),
            shows="Prompt tokens of one request's sources.",
            bad="At `max_context_tokens` all the time: some were left out, and `prefill` pays for all of it.",
            do="Lower `top_k` for speed, raise `max_context_tokens` for more sources.",
        ),
    ],
)  # fmt: skip

CACHES = Row(
    "Caches",
    [
        Panel(
            "lines", "Answered from a cache", [Query(share("groundwire_cache_requests_total", 'result=~"hit|shared"',
            by="cache"), "{{cache}}")], unit="percentunit",
            shows="The share of look-ups that found it: `embedding`, `retrieval`, `conversation`, `answer`. `shared` "
            "waited for another request's miss and counts as found.",
            bad="A fall to 0: each write to a store makes its retrievals new, so an ingest that never rests empties "
            "the cache.",
            do="Ingest less often and more at once; raise `retrieval_cache_entries`, `cache_ttl_seconds`.",
        ),
        Panel(
            "stack", "Look-ups", [Query(rate("groundwire_cache_requests_total", "cache, result"),
            "{{cache}} {{result}}")], unit="reqps",
            shows="What was asked of each cache.",
            bad="Only `miss`: the cache costs memory and gives nothing.",
            do="Turn it off (`…_cache_entries = 0`) if traffic does not repeat.",
        ),
        Panel(
            "lines", "Evictions", [Query(rate("groundwire_cache_evictions_total", "cache"), "{{cache}}")],
            unit="reqps",
            shows="Entries that made way for others before their time.",
            bad="Steadily above 0 while hits are few: the cache is too small.",
            do="Raise its `…_cache_entries`, or `cache_bytes`.",
        ),
        Panel(
            "lines", "Entries", [Query(series("groundwire_cache_entries"), "{{cache}} {{instance}}")], width=12,
            shows="How many entries each cache holds.", bad="At its limit, with evictions.", do="Raise its limit.",
        ),
        Panel(
            "lines", "Memory", [Query(series("groundwire_cache_size_bytes"), "{{cache}} {{instance}}")], unit="bytes",
            width=12,
            shows="What the entries take, about.", bad="At `cache_bytes`, with evictions.", do="Raise `cache_bytes`.",
        ),
    ],
)  # fmt: skip

CANARY = Row(
    "Canary: golden questions asked of the index again and again, without the model",
    [
        Panel(
            "lines", "Recall", [Query(series("groundwire_canary_recall", STORE), "{{store}} @{{k}} {{instance}}"),
             Query(series("groundwire_canary_min_recall"), "wanted @4 {{instance}}")], unit="percentunit",
            shows="The share of golden questions whose expected file or passage was among the first k, and "
            "`canary_min_recall`. Needs `canary_file`.",
            bad="A step down after an ingest: something was removed, or is cut differently. "
            "`GroundwireRecallDropped` fires at a tenth, and below what is wanted.",
            do="`groundwire canary check` names the questions that miss; ingest what is gone, or mend the golden "
            "file.",
        ),
        Panel(
            "lines", "Mean reciprocal rank", [Query(series("groundwire_canary_mrr", STORE), "{{store}} {{instance}}")],
            unit="percentunit",
            shows="1 where each expected passage comes first, 0.5 where second.",
            bad="Falls while recall stays: the right passage is found, below others. Near copies, or other weights.",
            do="`groundwire search` with such a question shows the score of each ranking.",
        ),
        Panel(
            "lines", "Age of the last run",
            [Query(f"time() - {series('groundwire_canary_last_run_timestamp_seconds', STORE)}", "{{instance}}"),
             Query(f"3 * {series('groundwire_canary_period_seconds')}", "late {{instance}}")], unit="s",
            shows="Seconds since the questions were last asked, and three times `canary_seconds`.",
            bad="Above the latter: it fails, or traffic leaves it no time (`GroundwireCanaryStale`).",
            do="See *Runs*, and the log.",
        ),
        Panel(
            "lines", "Latency of a question", quantiles("groundwire_canary_duration_seconds"), unit="s",
            shows="How long retrieval took for one golden question, caches aside.",
            bad="Grows as the index does: searches get slower for all.",
            do="*Stages*: `embed`, `lexical`, `search`.",
        ),
        Panel(
            "stack", "Runs", [Query(rate("groundwire_canary_runs_total", "outcome"), "{{outcome}}")], unit="reqps",
            colours=coloured("ok", "error"),
            shows="Runs by how they ended.", bad="`error`: the index could not be asked, and recall above is the "
            "last that was known.",
            do="`/ready`, and the log.",
        ),
        Panel(
            "stack", "Questions",
            [Query(f"max by (outcome) ({series('groundwire_canary_questions', STORE)})", "{{outcome}}")],
            colours=coloured("found", "missed", "gone"),
            shows="Golden questions of the last run: `found`, `missed`, or `gone` (their file is not in the store).",
            bad="`gone`: the golden file is older than the documents. Fewer than about 20: one miss moves recall much.",
            do="Mend the golden file; `groundwire canary init --questions N` proposes more.",
        ),
    ],
)  # fmt: skip

DASHBOARD = Dashboard(
    uid="groundwire-retrieval",
    title="Groundwire: retrieval quality",
    about="Does the search still find what it found, and what becomes of it.",
    rows=(FOUND, CANARY, PACKED, SCORES, CACHES),
    variables=(Variable("store", "groundwire_canary_recall", "store"),),
)

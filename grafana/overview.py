"""*Overview*: do answers come, how fast, and which objective is in danger."""

from __future__ import annotations

from grafana.panels import Dashboard, Panel, Query, Row, coloured, distribution, quantiles
from grafana.promql import OURS, quantile, rate, series, share, total

REQUESTS = "groundwire_request_duration_seconds"
FIRST_TOKEN = "groundwire_time_to_first_token_seconds"
#: What counts as answered or failed: who left, and who asked for nonsense, is neither.
SERVED = 'outcome=~"ok|error"'
SEE_STAGES = "Open *Stages*: its first panel says which step took the time."

NOW = Row(
    "Now",
    [
        Panel(
            "stat", "Requests a second", [Query(rate(f"{REQUESTS}_count"), "requests")], width=4, height=5,
            unit="reqps",
            shows="All requests that were worked on, however they ended.",
            bad="None where there should be some: clients do not reach the server, or are refused (see *Turned "
            "away*).",
            do="Ask `/ready`; look at the proxy in front, and at 401 and 503 in *Turned away*.",
        ),
        Panel(
            "stat", "Failed", [Query(share(f"{REQUESTS}_count", 'outcome="error"', SERVED), "failed")], width=4,
            height=5,
            unit="percentunit", warn=0.005, alarm=0.02,
            shows="Requests that ended with an error of the server, of all that were answered or failed. Who left, "
            "and requests that were wrong themselves, are in neither. Those refused for want of a place are in *Turned "
            "away*, and count in the objective too.",
            bad="Above 1 % the error objective is being missed.",
            do="The log has one line a failed request, with its route; `/ready` names a part that is down.",
        ),
        Panel(
            "stat", "First token, p95", [Query(quantile(0.95, FIRST_TOKEN), "p95")], width=4, height=5, unit="s",
            warn=1.5, alarm=2,
            shows="Nineteen of twenty streams had their first token by then, retrieval included.",
            bad="Above 2 s the objective for first tokens is being missed: people see a page that does nothing.",
            do=SEE_STAGES,
        ),
        Panel(
            "stat", "Requests, p95", [Query(quantile(0.95, REQUESTS, where='outcome="ok"'), "p95")], width=4,
            height=5, unit="s",
            shows="Nineteen of twenty answers were complete by then.",
            bad="It depends on how long answers are; bad is what is far above its own yesterday.",
            do=SEE_STAGES,
        ),
        Panel(
            "stat", "At work", [Query(total("groundwire_requests_in_flight"), "at work")], width=4, height=5,
            shows="Requests being worked on at this moment.",
            bad="As many as `max_running`: further ones wait.",
            do="See *Waiting for a place*, and scale out or raise `max_running`.",
        ),
        Panel(
            "stat", "Alerts", [Query('count(ALERTS{alertstate="firing", alertname=~"Groundwire.*"}) or vector(0)',
            "firing")],
            width=4, height=5, warn=1, alarm=3,
            shows="Groundwire's alerts that fire now; needs the rules in `grafana/rules/`.",
            bad="Any.",
            do="Each has a section in `docs/operations.md` that says what to look at and what to do.",
        ),
    ],
)  # fmt: skip

OBJECTIVES = Row(
    "Objectives: how fast the error budget burns (1 uses it up exactly at the end of its period)",
    [
        Panel(
            "lines", "Errors: 99 of 100 requests succeed",
            [Query(f'max(groundwire:errors:burn_rate{window})', window) for window in ("5m", "1h", "6h")], width=12,
            warn=1, alarm=14.4,
            shows="Failed and overloaded requests against the share that the objective allows; needs the rules in "
            "`grafana/rules/`.",
            bad="At 14.4 for an hour, a fiftieth of a month's budget is gone: `GroundwireErrorBudgetBurnsFast` "
            "fires. Above 1 for days it is used up too soon.",
            do="*Requests by outcome* and *Turned away* say which: errors are in the log, refusals want more "
            "capacity.",
        ),
        Panel(
            "lines", "First tokens: 95 of 100 streams within 2 s",
            [Query(f'max(groundwire:slow_first_tokens:burn_rate{window})', window) for window in ("5m", "1h", "6h")],
            width=12,
            warn=1, alarm=14.4,
            shows="Streams whose first token took longer than 2 s, against the share that the objective allows; "
            "needs the rules in `grafana/rules/`.",
            bad="Above 6 for hours nearly a third of the streams are slow; who left without a token after 2 s is among "
            "them.",
            do=SEE_STAGES,
        ),
    ],
)  # fmt: skip

LATENCY = Row(
    "How fast",
    [
        Panel(
            "lines", "Time to the first token", quantiles(FIRST_TOKEN, exemplars=True), unit="s", width=8,
            shows="From a request's first byte in to its first generated token. The dots are single requests; each "
            "leads to its trace.",
            bad="p99 far above p95: a few requests wait, for a place, the engine's queue or a slow search.",
            do="Open the trace of a dot at the top, or its receipt (`/v1/rag/receipts/{id}`); else *Stages*.",
        ),
        Panel(
            "lines", "Whole requests", quantiles(REQUESTS, 'outcome="ok"', exemplars=True), unit="s", width=8,
            shows="Duration of the requests that ended well, with single ones as dots.",
            bad="It grows while *Time between tokens* stays: answers or prompts have become longer.",
            do="Compare with *Tokens a second*; bound answers with `default_max_tokens`.",
        ),
        Panel(
            "lines", "Time between tokens", quantiles("groundwire_inter_token_latency_seconds"), unit="s", width=8,
            shows="The gap between two tokens of a stream: how fast text appears.",
            bad="Above about 0.1 s people read faster than text comes. p99 far above p50: other work gets in "
            "between, as long prefills do.",
            do="*Engine* shows how many requests share a step; lower `max_running` or `--max-num-seqs`, or scale out.",
        ),
        Panel(
            "heatmap", "First tokens, each bucket", distribution(FIRST_TOKEN), unit="s", width=12,
            shows="How many streams had their first token how late.",
            bad="Two bands: two kinds of requests, or of prompts (cached and not). A band that climbs: a queue.",
            do="*Stages* has the same for each step; look for the one with the same picture.",
        ),
        Panel(
            "lines", "First token, grounded and plain",
            [Query(quantile(0.5, FIRST_TOKEN, "grounded"), "grounded {{grounded}}, p50"),
             Query(quantile(0.95, FIRST_TOKEN, "grounded"), "grounded {{grounded}}, p95")],
            unit="s", width=12,
            shows="What retrieval and the longer prompt cost: the difference between the two.",
            bad="The gap grows: retrieval has become slower, or sources longer.",
            do="*Stages*: `embed` and `search` for retrieval, `prefill` for the prompt; `max_context_tokens` bounds "
            "the sources.",
        ),
    ],
)  # fmt: skip

TRAFFIC = Row(
    "Traffic",
    [
        Panel(
            "stack", "Requests by outcome", [Query(rate("groundwire_requests_total", "outcome"), "{{outcome}}")],
            unit="reqps", colours=coloured("ok", "error", "rejected", "cancelled"),
            shows="`ok`, `error`, `rejected` (the request was wrong), `cancelled` (the client left), `dry_run`.",
            bad="`error`: ours. Much `cancelled`: people give up, so look at the time to the first token.",
            do="The log has a line for each error; *Clients that left, streams cut short* says where.",
        ),
        Panel(
            "stack", "Requests by route", [Query(rate(f"{REQUESTS}_count", "route"), "{{route}}")], unit="reqps",
            shows="Which part of the API is used.",
            bad="A route that suddenly stops: a client was changed, or is refused.",
            do="See *Turned away* and *Requests by outcome*.",
        ),
        Panel(
            "stack", "Turned away", [Query(rate("groundwire_requests_rejected_total", "reason"), "{{reason}}")],
            unit="reqps",
            shows="Refused before any work was done, by reason.",
            bad="`queue_*`: the server has more than it may take. `key_*`: one key asks too much. `auth`: a wrong "
            "key.",
            do="`docs/operations.md`, *Overload*, says which setting each reason belongs to.",
        ),
        Panel(
            "lines", "Waiting for a place", [Query(series("groundwire_admission_queue_length"), "{{instance}}")],
            shows="Requests that were let in but not begun.",
            bad="Never empty for minutes: more comes in than goes out, and the wait adds to every first token.",
            do="Scale out, raise `max_running` if the engine batches more, or lower `max_queued` to refuse sooner.",
        ),
        Panel(
            "lines", "Wait for a place", quantiles("groundwire_admission_queue_duration_seconds"), unit="s",
            shows="How long requests waited; only those that had to.",
            bad="Near `queue_timeout_seconds`: the next step is 503.",
            do="As for *Waiting for a place*.",
        ),
        Panel(
            "lines", "At work by route", [Query(total("groundwire_requests_in_flight", "route"), "{{route}}")],
            shows="Requests being worked on.",
            bad="A line that stays up with no traffic: requests that never end.",
            do="`request_timeout_seconds` and `max_stream_seconds` bound them.",
        ),
        Panel(
            "lines", "Tokens a second", [Query(rate("groundwire_tokens_total", "kind"), "{{kind}}")],
            shows="`prompt` (all), of it `context` (sources) and `cached` (known to the engine), and `completion`.",
            bad="`context` grows and answers do not get better: sources cost time for nothing.",
            do="Lower `top_k` or `max_context_tokens`; `sticky` lets conversations hit the engine's cache.",
        ),
        Panel(
            "lines", "Prompts and answers, p50 and p95",
            [Query(quantile(q, f"groundwire_{kind}_tokens"), f"{kind} p{q * 100:.0f}") for kind in ("prompt",
            "completion") for q in (0.5, 0.95)],
            shows="Tokens of one request's prompt and answer.",
            bad="Prompts near the model's window: sources are left out (`no_room` in *Retrieval quality*).",
            do="A larger `--max-model-len`, or shorter conversations.",
        ),
        Panel(
            "lines", "Clients that left, streams cut short",
            [Query(rate("groundwire_requests_aborted_total", "route"), "left {{route}}"),
             Query(rate("groundwire_abandoned_wait_seconds_count"), "left without a token"),
             Query(rate("groundwire_streams_cut_short_total", "route"), "cut {{route}}")], unit="reqps",
            shows="Clients that went away before the end, and of streams before the first token; streams that were "
            "ended at `max_stream_seconds`.",
            bad="Leaving rises with the time to the first token: people give up. All leave without a token: the engine "
            "hangs (`GroundwireNothingAnswered`). Cut streams are half answers.",
            do="Make first tokens faster; raise `max_stream_seconds` or bound answers with `default_max_tokens`.",
        ),
        Panel(
            "stack", "The model auto", [Query(rate("groundwire_routed_requests_total", "route, reason"),
            "{{route}}: {{reason}}")], unit="reqps",
            width=12,
            shows="Requests for `auto` by the model that they went to, and why; empty without `[routing]`.",
            bad="`fallback`: an engine did not answer. All `large`: the small model is there for nothing.",
            do="`/ready` says which engine is away; `docs/engines.md` has the rule's numbers.",
        ),
        Panel(
            "stack", "Tenants", [Query(rate("groundwire_tenant_requests_total", "tenant"), "{{tenant}}")],
            unit="reqps", width=12,
            shows="Requests by tenant, where `metrics_tenants` is set; all further ones are `other`.",
            bad="One has nearly all: others may be waiting for it.",
            do="`max_concurrent_per_key` bounds a key.",
        ),
    ],
)  # fmt: skip

PROCESS = Row(
    "The process",
    [
        Panel(
            "bars", "Steps of the last start",
            [Query(f"sort_desc({series('groundwire_start_step_duration_seconds')})", "{{step}} ({{instance}})")],
            unit="s",
            shows="How long each step took; several run beside others, so they do not add up (`docs/metrics.md`).",
            bad="`engine` is nearly all of it on a GPU; any other that takes minutes is worth a look.",
            do="Compile caches and local weights for `engine`; `groundwire setup` beforehand for downloads.",
        ),
        Panel(
            "lines", "Whole start", [Query(series("groundwire_start_duration_seconds"), "{{instance}}")], unit="s",
            shows="From the process's beginning until it could answer.",
            bad="Longer than the platform's limit for a start: it is killed before it serves.",
            do="*Steps of the last start* says what took the time.",
        ),
        Panel(
            "lines", "Memory", [Query(series("process_resident_memory_bytes", OURS), "{{instance}}")], unit="bytes",
            shows="Resident memory of the server's own process; vLLM's engine and Chroma are processes beside it.",
            bad="It grows for days without an end.",
            do="Lower `cache_bytes` and `receipts_bytes`; report what traffic it grows with.",
        ),
        Panel(
            "lines", "Processor", [Query(rate("process_cpu_seconds_total", "instance", OURS), "{{instance}}")],
            width=12, unit="percentunit",
            shows="How many processor cores the server's own process uses: 100 % is one.",
            bad="Near 100 % for long: the event loop is full, and every stream waits for it.",
            do="More replicas, or the retrieval tier apart from the engine (`engine = upstream`).",
        ),
        Panel(
            "lines", "Versions", [Query(f"max by (instance, version, engine, engine_version, embedder, chroma) "
            f"({series('groundwire_build_info')})",
                                        "{{instance}}: {{version}}, {{engine}} {{engine_version}}, {{embedder}}")],
                                        width=12,
            shows="What runs where.",
            bad="Different versions or embedders behind one URL: the same question gets different answers.",
            do="Finish the roll-out, or roll back.",
        ),
    ],
)  # fmt: skip

DASHBOARD = Dashboard(
    uid="groundwire-overview",
    title="Groundwire: overview",
    about="Do answers come, how fast, and which objective is in danger.",
    rows=(NOW, OBJECTIVES, LATENCY, TRAFFIC, PROCESS),
)

"""*Ingestion and index*: what is searched, and what changes it."""

from __future__ import annotations

from grafana.panels import Dashboard, Panel, Query, Row, Variable, coloured, quantiles
from grafana.promql import WINDOW, quantile, series

STORE = 'store=~"$store"'


def _most(counter: str, by: str) -> str:
    """A counter that all servers of one data directory show alike: not summed."""
    return f"max by ({by}) (increase({series(counter)}[{WINDOW}]))"


STORES = Row(
    "Stores",
    [
        Panel(
            "lines", "Passages", [Query(f"max by (store) ({series('groundwire_index_passages', STORE)})",
            "{{store}}")],
            shows="Passages that searches see, by store; beyond `metrics_stores` stores as `other`.",
            bad="A fall that nobody meant: files were removed, or `--prune` ran over an empty folder.",
            do="Ingest again; `groundwire stores` lists what is there.",
        ),
        Panel(
            "stack", "Files by state", [Query(f"max by (store, state) ({series('groundwire_index_files', STORE)})",
            "{{store}} {{state}}")],
            shows="Files by store: `completed`, `in_progress`, `failed`, `cancelled`.",
            bad="`failed`: their text is not searched. `in_progress` without an ingest that runs: one was killed.",
            do="The next `groundwire ingest` finishes what is half done, and names what fails.",
        ),
        Panel(
            "lines", "Store versions", [Query(series("groundwire_index_store_version", STORE),
            "{{store}} {{instance}}")],
            shows="The version of each store's index; it moves with each write, and empties the store's cached "
            "retrievals.",
            bad="Instances that differ for long: one does not follow the catalog.",
            do="`/ready` and the log of the one behind.",
        ),
    ],
)  # fmt: skip

INGESTS = Row(
    "Ingestion",
    [
        Panel(
            "stack", "Runs", [Query(_most("groundwire_ingest_runs_total", "outcome"), "{{outcome}}")],
            colours=coloured("ok", "partial", "failed", "cancelled"),
            shows="Ingests by how they ended: `ok`, `partial` (some files could not be read), `failed`, `cancelled`.",
            bad="`failed`: it ended early (`GroundwireIngestFails`). Files that it had finished are in the index; with "
            "`--publish` nothing has changed.",
            do="What the command said; run it again, it goes on where it stopped.",
        ),
        Panel(
            "stack", "Files", [Query(_most("groundwire_ingest_files_total", "outcome"), "{{outcome}}")],
            shows="Files by what an ingest did with them.",
            bad="`failed`: unreadable. All `replaced` each time: something rewrites them, and all is embedded again.",
            do="`groundwire ingest` names each file and why.",
        ),
        Panel(
            "lines", "Since the last success",
            [Query(f"time() - ({series('groundwire_ingest_last_success_timestamp_seconds')} > 0)", "{{instance}}")],
            unit="s",
            shows="Seconds since an ingest came to its end.",
            bad="Longer than your schedule: it does not run, or fails.",
            do="Look at the scheduler's log; run it by hand.",
        ),
        Panel(
            "lines", "Running", [Query(series("groundwire_ingest_running"), "{{instance}}")],
            shows="1 while an ingest, a reindex or an adoption works.",
            bad="1 for hours (`GroundwireIngestStuck`): it is large, hangs, or waits for the database.",
            do="See what it prints; end it with Ctrl-C and start it again, nothing is lost.",
        ),
        Panel(
            "lines", "Steps, p95",
            [Query(quantile(0.95, "groundwire_ingest_step_duration_seconds", "step"), "{{step}}")], unit="s",
            shows="How long the steps take: `load` and `chunk` a file, `embed` and `write` some chunks, `commit` the "
            "keyword index.",
            bad="`embed` beside a busy server is slow on purpose: it gives way. `write` in seconds: Chroma is busy.",
            do="Ingest on another machine (`--publish`), or at night.",
        ),
        Panel(
            "stack", "Seconds by step", [Query(_most("groundwire_ingest_step_duration_seconds_sum", "step"),
            "{{step}}")], unit="s",
            shows="Where an ingest's time went.",
            bad="Anything but `embed` on top.",
            do="`load`: slow files or disks; `write`: Chroma.",
        ),
    ],
)  # fmt: skip

PUBLISHED = Row(
    "Chroma and published versions",
    [
        Panel(
            "lines", "Chroma restarts", [Query(f"increase({series('groundwire_chroma_restarts_total')}[{WINDOW}])",
            "{{instance}}")], alarm=1,
            shows="How often the Chroma child had to be started again.",
            bad="Any: while it starts, answers go without sources (`GroundwireChromaRestarts`).",
            do="`chroma-died.log` in the data directory; memory, disk.",
        ),
        Panel(
            "lines", "Search in Chroma", quantiles("groundwire_stage_duration_seconds", 'stage="search"'), unit="s",
            shows="The stage `search`, beside what the index does.",
            bad="Slow whenever an ingest writes.",
            do="A Chroma of its own (`chroma_url`), or published versions.",
        ),
        Panel(
            "lines", "Published version", [Query(series("groundwire_index_version"), "{{instance}}")],
            shows="The version that each instance answers from; 0 where none was published.",
            bad="Instances that differ for longer than `published_poll_seconds` and a copy.",
            do="*Hand-overs*, and the log of the one behind.",
        ),
        Panel(
            "stack", "Hand-overs",
            [Query(f"sum by (outcome) (increase({series('groundwire_index_handovers_total')}[{WINDOW}]))",
            "{{outcome}}")], width=24, height=6, colours=coloured("ok", "failed"),
            shows="Newer versions that were taken over, and tries that failed.",
            bad="`failed`: the version before goes on (`GroundwireHandoverFails`).",
            do="The log says what is wrong with the version; the runbook what mends it.",
        ),
    ],
)  # fmt: skip

DASHBOARD = Dashboard(
    uid="groundwire-index",
    title="Groundwire: ingestion and index",
    about="What is searched, and what changes it.",
    rows=(STORES, INGESTS, PUBLISHED),
    variables=(Variable("store", "groundwire_index_passages", "store"),),
)

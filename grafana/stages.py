"""*Stages*: which step of a request makes answers slow. One row a stage, in pipeline order."""

from __future__ import annotations

from dataclasses import dataclass

from grafana.panels import Dashboard, Panel, Query, Row, coloured, distribution, quantiles
from grafana.promql import mean, quantile, rate
from retrieval.trace import STAGES

STAGE = "groundwire_stage_duration_seconds"
REQUESTS = "groundwire_request_duration_seconds"
#: The stages that stand one behind the other: `lexical` runs beside two of them.
IN_ROW = rate(f"{STAGE}_sum", where='stage!="lexical"')
#: What is left of a request when they are taken away.
OUTSIDE = f"({rate(f'{REQUESTS}_sum')} - {IN_ROW}) / {rate(f'{REQUESTS}_count')}"


@dataclass(frozen=True)
class About:
    """What a stage does, what slow or failing means there, and what helps."""

    does: str
    slow: str
    helps: str


ABOUT = {
    "plan": About(
        "Reads the request: stores, question, model.", "Huge conversations, or a processor that is full.",
        "See *Processor* in *Overview*."
    ),
    "embed": About(
        "The question becomes a vector.", "Many questions at once share one thread, or vLLM takes the cores.",
        "`embed_threads`, `query_precision = int8`; the embedding cache in *Retrieval quality*.",
    ),
    "lexical": About(
        "Keyword hits, beside `embed` and `search`.", "A large keyword index on a slow disk; a new machine that "
        "copies its index.",
        "A local disk for `data_dir`; memory for the page cache.",
    ),
    "search": About(
        "Nearest vectors from Chroma, and the passages.", "Chroma is busy with an ingest, far away, or starting "
        "again.",
        "See *Ingestion and index*: restarts, and ingests that run; a Chroma of its own (`chroma_url`).",
    ),
    "fuse": About("Two rankings become one.", "Nothing but a processor that is full.", "See *Processor* in "
    "*Overview*."),
    "rerank": About(
        "A cross-encoder orders the best anew, where one is set.", "It reads too much for the machine; `timeout` "
        "means that it was given up.",
        "Lower `rerank_candidates`, or `rerank_timeout_seconds`; a smaller model.",
    ),
    "pack": About(
        "Passages become sources within the token budget.", "Counting tokens is slow: long passages, or an upstream "
        "that counts.",
        "Lower `candidates` or `top_k`.",
    ),
    "inject": About("Sources go into the last message.", "Nothing but a processor that is full.",
    "See *Processor* in *Overview*."),
    "queue": About(
        "The engine lets it wait.", "More requests than the engine batches, or no room in its KV cache.",
        "*Engine*: waiting, and KV cache; more replicas, `--max-num-seqs`, more GPU memory.",
    ),
    "prefill": About(
        "The engine reads the prompt, up to the first token.", "Long prompts, few prefix hits, or many prefills at "
        "once.",
        "Fewer context tokens (`max_context_tokens`), `sticky`, chunked prefill; *Engine* has the prefix hits.",
    ),
    "decode": About(
        "The engine writes the answer.", "Long answers, or many that share a step.",
        "`default_max_tokens`; *Engine*: how many run at once. Compare *Time between tokens* in *Overview*.",
    ),
    "weave": About("The answer gets its sources.", "Nothing but a processor that is full.", "See *Processor* in "
    "*Overview*."),
}  # fmt: skip
#: A stage has one colour in all panels, whichever others ran.
COLOURS = {
    "plan": "#b7b7b7", "embed": "#f2cc0c", "lexical": "#ffa6b0", "search": "#ff780a", "fuse": "#8ab8ff",
    "rerank": "#a352cc", "pack": "#1f9e89", "inject": "#705da0", "queue": "#e02f44", "prefill": "#3274d9",
    "decode": "#56a64b", "weave": "#806eb7",
}  # fmt: skip

WHERE = Row(
    "Where the time goes",
    [
        Panel(
            "stack", "Seconds of a request, by stage",
            [Query(f"{rate(f'{STAGE}_sum', 'stage')} / scalar({rate(f'{REQUESTS}_count')})", "{{stage}}")],
            unit="s", width=16, height=10, colours=COLOURS,
            shows="What an average request spends in each stage; the widest band is the step that makes answers "
            "slow. `lexical` runs beside `embed` and `search`, so the stack is a little higher than a request is long.",
            bad="A band that has become wider than it was.",
            do="Find its row below: each panel says what slow means there.",
        ),
        Panel(
            "bars", "Mean of each stage, now",
            [Query(f"sort_desc({mean(STAGE, 'stage')})", "{{stage}}")], unit="s", width=8,
            height=10,
            shows="Mean seconds of one run of the stage; only requests that had it count.",
            bad="Any but `prefill` and `decode` above 0.1 s: the others take milliseconds.",
            do="Find its row below.",
        ),
        Panel(
            "lines", "p95 by stage", [Query(quantile(0.95, STAGE, "stage"), "{{stage}}")], unit="s", width=8,
            colours=COLOURS,
            shows="Nineteen of twenty runs of the stage were done by then.",
            bad="One line leaves its usual height: `GroundwireStageSlower` fires when a mean doubles.",
            do="Find its row below.",
        ),
        Panel(
            "lines", "Time in no stage",
            [Query(OUTSIDE, "outside")],
            unit="s", width=8, below_zero=True,
            shows="What of a request's time is in none of its stages: waiting for a place, sending bytes to clients "
            "that read slowly, `lexical` where the others wait for it, the event loop. Below 0 where stages overlap: "
            "`weave` lies within `decode`, and the prompts of one text completion are answered side by side.",
            bad="It grows: the event loop is full, or clients wait for a place.",
            do="*Waiting for a place* and *Processor* in *Overview*.",
        ),
        Panel(
            "lines", "Stages that did not end well", [Query(rate(f"{STAGE}_count", "stage, outcome", 'outcome!="ok"'),
            "{{stage}} {{outcome}}")], unit="reqps", width=8,
            shows="`error`, `timeout` (a limit of time ended it), and `cancelled` (the client left) by stage.",
            bad="`error` or `timeout` in `embed`, `lexical` or `search`: answers go without sources (`degraded`).",
            do="The log names the part; `/ready` says whether Chroma and the catalog answer.",
        ),
    ],
)  # fmt: skip


def _row(stage: str) -> Row:
    about, only = ABOUT[stage], f'stage="{stage}"'
    return Row(
        stage,
        [
            Panel(
                "lines", f"{stage}: quantiles", quantiles(STAGE, only, exemplars=True), unit="s", height=7,
                shows=f"{about.does} The dots are single requests; each leads to its trace.",
                bad=about.slow, do=about.helps,
            ),
            Panel(
                "heatmap", f"{stage}: each bucket", distribution(STAGE, only), unit="s", height=7,
                shows=f"How many runs of `{stage}` took how long.", bad=f"A second, higher band. {about.slow}",
                do=about.helps,
            ),
            Panel(
                "stack", f"{stage}: runs by outcome", [Query(rate(f"{STAGE}_count", "outcome", only), "{{outcome}}")],
                unit="reqps", height=7, colours=coloured("ok", "error", "timeout", "cancelled"),
                shows=f"How often `{stage}` ran, by how it ended.",
                bad="`error` and `timeout`: it failed. `cancelled`: the client left meanwhile.",
                do="For failures the log; for clients that leave here, make it faster.",
            ),
        ],
    )  # fmt: skip


DASHBOARD = Dashboard(
    uid="groundwire-stages",
    title="Groundwire: stages",
    about="Which step of a request makes answers slow. The rows are the stages in the order in which a request goes "
    "through them.",
    rows=(WHERE, *(_row(stage) for stage in STAGES)),
)

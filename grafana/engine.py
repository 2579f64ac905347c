"""*Engine*: vLLM's own metrics, as far as they explain slow answers."""

from __future__ import annotations

from grafana.panels import Dashboard, Panel, Query, Row, Variable, distribution, quantiles
from grafana.promql import OURS, mean, rate, series, total

MODEL = f'{OURS}, model_name=~"$model"'


def _ratio(part: str, whole: str) -> str:
    return f"{rate(part, where=MODEL)} / {rate(whole, where=MODEL)}"


LOAD = Row(
    "Load",
    [
        Panel(
            "lines", "Running and waiting",
            [Query(total("vllm:num_requests_running", "instance", MODEL), "running {{instance}}"),
             Query(total("vllm:num_requests_waiting", "instance", MODEL), "waiting {{instance}}")],
            shows="Requests in the engine's batch, and before it.",
            bad="Waiting stays above 0: the batch is full, and each first token waits for someone else's last.",
            do="More replicas; a larger `--max-num-seqs` or more GPU memory where *KV cache* is not full.",
        ),
        Panel(
            "stack", "Waiting, by reason", [Query(total("vllm:num_requests_waiting_by_reason", "reason", MODEL),
            "{{reason}}")],
            shows="Why requests wait in the engine: `capacity`, or `deferred` for something that is not there yet.",
            bad="`capacity` for minutes.", do="As for *Running and waiting*.",
        ),
        Panel(
            "lines", "KV cache", [Query(series("vllm:kv_cache_usage_perc", MODEL), "{{model_name}} {{instance}}")],
            unit="percentunit", warn=0.9, alarm=0.98,
            shows="How much of the memory for attention keys and values is in use.",
            bad="Near 100 %: requests wait, or are thrown out and begun again (*Preemptions*).",
            do="`--gpu-memory-utilization`, an fp8 cache (`--kv-cache-dtype`), shorter contexts, or more replicas; "
            "`groundwire plan` computes it.",
        ),
        Panel(
            "stack", "Tokens a second",
            [Query(rate("vllm:prompt_tokens_total", where=MODEL), "prompt"),
            Query(rate("vllm:generation_tokens_total", where=MODEL), "generated")],
            shows="What the engine reads and writes.",
            bad="Generated tokens stop growing while running requests grow: the engine is at its limit.",
            do="More replicas, or a smaller or quantised model.",
        ),
        Panel(
            "lines", "Prefix cache hits", [Query(_ratio("vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total"), "hits")], unit="percentunit",
            shows="The share of prompt tokens that the engine knew from an earlier prompt.",
            bad="Low for conversations: their prompts change in the middle.",
            do="`sticky` keeps sources where they were; several replicas want a router that knows the conversation.",
        ),
        Panel(
            "lines", "Preemptions", [Query(rate("vllm:num_preemptions_total", "instance", MODEL), "{{instance}}")],
            shows="Requests thrown out of the batch for want of memory, and computed again.",
            bad="Any for long: work is done twice (`GroundwireKvCacheFull`).",
            do="As for *KV cache*; lower `--max-num-seqs`.",
        ),
    ],
)  # fmt: skip

TIMES = Row(
    "Times, as the engine measures them",
    [
        Panel(
            "lines", "First token", quantiles("vllm:time_to_first_token_seconds", MODEL), unit="s",
            shows="From the engine's first sight of a request to its first token: retrieval is not in it.",
            bad="The same as *Time to the first token* in *Overview*: all of the wait is the engine's.",
            do="*Queue, prefill, decode: means* says which part.",
        ),
        Panel(
            "lines", "Time between tokens", quantiles("vllm:inter_token_latency_seconds", MODEL), unit="s",
            shows="The gap between two tokens of a request.",
            bad="Far below *Time between tokens* in *Overview*: tokens wait in the server's event loop.",
            do="*Processor* in *Overview*; more replicas.",
        ),
        Panel(
            "lines", "Whole requests", quantiles("vllm:e2e_request_latency_seconds", MODEL), unit="s",
            shows="From the engine's first sight of a request to its last token.",
            bad="Far below *Whole requests* in *Overview*: the time goes before or after the engine.",
            do="*Stages* says where.",
        ),
        Panel(
            "stack", "Queue, prefill, decode: means",
            [Query(mean(f"vllm:request_{part}_time_seconds", where=MODEL), part) for part in ("queue", "prefill",
            "decode")], unit="s",
            shows="Where an average request's time in the engine goes.",
            bad="`queue` is a visible part of it: capacity. `prefill`: long prompts.",
            do="The rows `queue`, `prefill` and `decode` of *Stages*.",
        ),
        Panel(
            "heatmap", "Tokens of a step", distribution("vllm:iteration_tokens_total", MODEL),
            shows="How many tokens the engine worked on in one step: one a stream that decodes, a whole chunk for a "
            "prefill.",
            bad="Steps of thousands beside many of few: prefills hold up the streams.",
            do="A smaller `--max-num-batched-tokens`.",
        ),
        Panel(
            "stack", "Ended, by reason", [Query(rate("vllm:request_success_total", "finished_reason", MODEL),
            "{{finished_reason}}")], unit="reqps",
            shows="`stop`, `length` (a token limit), `abort`, `error`. Clients that leave are in *Overview*, vLLM "
            "does not count them all.",
            bad="Much `length`: answers are cut off. Any `error`.",
            do="Raise `default_max_tokens` or the window; the log for errors.",
        ),
    ],
)  # fmt: skip

SERVED = Row(
    "What is served",
    [
        Panel(
            "lines", "Models", [Query(f"count by (model) ({series('groundwire_model_info')})", "{{model}}")],
            width=24, height=6,
            shows="How many instances serve each model.",
            bad="A model with fewer instances than there should be.",
            do="`/ready` of the instance that lacks it; its log.",
        ),
    ],
)  # fmt: skip

DASHBOARD = Dashboard(
    uid="groundwire-engine",
    title="Groundwire: engine",
    about="vLLM's own metrics, as far as they explain slow answers. Empty for upstream engines, whose metrics are on "
    "their own pages.",
    rows=(LOAD, TIMES, SERVED),
    variables=(Variable("model", "vllm:num_requests_running", "model_name"),),
)

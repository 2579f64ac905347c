"""`groundwire plan`: what a model and a GPU cost and deliver, before anything is rented. All of it predicted.

Exit status: 0 when the model fits, 1 when it does not or is not known, 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.local import clean

if TYPE_CHECKING:
    from rich.table import Table

    from server.capacity.hardware import Hardware
    from server.capacity.load import Workload
    from server.capacity.planner import CapacityPlan, Subject
    from server.settings import Settings

SETTINGS = ("profile", "model")
GIB = 2**30
#: Two lines each, so that the table is 80 columns wide.
HEADERS = (
    "weights\nGiB", "KV KiB\na token", "at\nonce", "first\nms", "ms a\ntoken", "answer\ns", "req/s\nmost",
    "replicas", "cold\ns", "$ a\nmonth",
)  # fmt: skip


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "plan",
        help="predict what a model and a GPU cost and deliver",
        description="Predict memory, speed, cold start and cost of a profile (--profile) or of a model folder "
        "(--model) on one of Modal's GPUs. Without either: a table of all profiles. Nothing is measured.",
        epilog="vLLM's flags are those of the profile and of GROUNDWIRE_VLLM_ARGS. "
        "Exit status: 0 when it fits, 1 when it does not, 2 for a bad argument.",
    )
    add = parser.add_argument
    add("--gpu", default="A10G", metavar="NAME", help="as Modal calls it (A10G)")
    add("--prompt-tokens", type=int, default=1500, metavar="N", help="sources and question (1500)")
    add("--output-tokens", type=int, default=200, metavar="N", help="of an answer (200)")
    add("--qps", type=float, default=1.0, metavar="N", help="requests a second (1)")
    add("--min-containers", type=int, default=1, metavar="N", help="kept warm (1)")
    add("--json", action="store_true", help="print JSON")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the plan, or the table of all profiles."""
    from server.capacity.architecture import CapacityError
    from server.capacity.hardware import gpu
    from server.capacity.load import Workload
    from server.capacity.planner import plan_capacity

    try:
        hardware = gpu(args.gpu)
        work = Workload(args.prompt_tokens, args.output_tokens, args.qps, args.min_containers)
    except CapacityError as error:
        print(f"groundwire plan: {clean(str(error))}", file=sys.stderr)
        return 2
    try:
        subjects = _subjects(settings)
        plans = [plan_capacity(subject, hardware, work) for subject in subjects]
    except CapacityError as error:
        print(f"groundwire plan: {clean(str(error))}", file=sys.stderr)
        return 1
    whole_table = not _asked_for_one(settings)
    if args.json:
        found = [plan.as_json() for plan in plans]
        print(json.dumps(found if whole_table else found[0]))
    elif whole_table:
        _print_table(plans, hardware, work)
    else:
        _print_plan(plans[0], hardware)
    return 0 if whole_table or plans[0].fits else 1


def _asked_for_one(settings: Settings) -> bool:
    return not {"profile", "model"}.isdisjoint(settings.model_fields_set)


def _subjects(settings: Settings) -> list[Subject]:
    """What to plan for. Raises CapacityError for a model whose shape is not known."""
    from server.capacity.architecture import CapacityError
    from server.capacity.folder import read_folder
    from server.capacity.planner import Subject
    from server.profiles import NAMES, load_profile, profile_of

    if not _asked_for_one(settings):
        profiles = [load_profile(name) for name in NAMES]
        return [Subject(p.name, p.model, p.architecture, p.vllm_args) for p in profiles]
    model, folder = settings.model, Path(settings.model)
    profile = load_profile(settings.profile) if settings.profile else profile_of(model)
    if folder.is_dir():
        architecture = read_folder(folder)
    elif profile is not None and profile.model == model:
        architecture = profile.architecture
    else:
        raise CapacityError(
            f"model: {model!r} is no folder and no profile's model, so its shape is not known here; give a "
            "folder with config.json and *.safetensors, or --profile"
        )
    name = settings.profile or folder.name
    return [Subject(name, model, architecture, settings.vllm_args)]


def _print_plan(plan: CapacityPlan, hardware: Hardware) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    title = f"{clean(plan.subject)} on {plan.gpu}, predicted: {clean(plan.model)}"
    console.print(Text(title, style="bold"))
    table = Table(Column(no_wrap=True), Column(), show_header=False, box=None, pad_edge=False)
    for name, value in (*_memory_rows(plan), *_speed_rows(plan), *_cost_rows(plan, hardware)):
        table.add_row(Text(name), Text(value))
    console.print(table)
    for problem in plan.problems:
        console.print(Text(clean(problem), style="yellow"))


def _memory_rows(plan: CapacityPlan) -> list[tuple[str, str]]:
    memory = plan.memory
    return [
        ("memory", f"{_gib(memory.total_bytes)}, of which vLLM may take {_gib(memory.usable_bytes)}"),
        ("  weights", _gib(memory.weights_bytes)),
        ("  computing", _gib(memory.reserve_bytes)),
        ("  keys and values", f"{_gib(memory.kv_bytes)} at {memory.kv_bytes_per_token / 1024:.1f} KiB a token"),
        (
            "  room",
            f"{memory.kv_tokens:,} tokens: {memory.requests} requests of {plan.workload.request_tokens:,} at once "
            f"(window {plan.max_model_len:,})",
        ),
    ]  # fmt: skip


def _speed_rows(plan: CapacityPlan) -> list[tuple[str, str]]:
    work = plan.workload
    if plan.alone is None or plan.loaded is None or plan.cold_start is None:
        return []
    rows = []
    asked = f"{work.prompt_tokens:,} + {work.output_tokens:,} tokens"
    for name, speed in (
        (f"alone, {asked}", plan.alone),
        (f"at {work.qps:g} a second", plan.loaded),
    ):
        rows.append(
            (
                name,
                f"first token {speed.ttft_seconds * 1000:,.0f} ms, then {speed.token_seconds * 1000:.1f} ms a "
                f"token, answer {speed.answer_seconds:.2f} s",
            )
        )
    rows.append(
        (
            "one replica at most",
            f"{plan.highest_qps:.2f} requests a second, {plan.tokens_per_second:,.0f} answer tokens a second",
        )
    )
    rows.append(
        (
            "replicas needed",
            f"{plan.replicas}, with {plan.loaded.requests:.1f} requests at once in each",
        )
    )
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in plan.cold_start.items())
    return [*rows, ("cold start, s", steps)]


def _cost_rows(plan: CapacityPlan, hardware: Hardware) -> list[tuple[str, str]]:
    if (cost := plan.cost) is None:
        return []
    kept = plan.workload.min_containers
    return [
        ("a container", f"${cost.container_hour:.2f} an hour (GPU ${hardware.dollars_per_second * 3600:.2f})"),
        (f"a month, {kept} warm", f"${cost.month_warm:,.0f}"),
        ("a month at this load", f"${cost.month_loaded:,.0f}, ${cost.thousand_answers:.2f} a thousand answers"),
        ("prices", f"Modal's of {cost.prices_of}; they change"),
    ]  # fmt: skip


def _print_table(plans: list[CapacityPlan], hardware: Hardware, work: Workload) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(
        Text(
            f"Predicted on {hardware.name}: prompts of {work.prompt_tokens:,} tokens, answers of "
            f"{work.output_tokens:,}, {work.qps:g} a second"
        )
    )
    console.print(_table(plans))
    console.print(
        Text("`groundwire plan --profile NAME` shows how; prices are Modal's of that day.")
    )


def _table(plans: list[CapacityPlan]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    right = (Column(name, justify="right") for name in HEADERS)
    table = Table(
        Column("profile", no_wrap=True), *right, box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for plan in plans:
        table.add_row(*(Text(cell) for cell in cells(plan)))
    return table


def cells(plan: CapacityPlan) -> list[str]:
    """One row of the table of profiles: its name, then what `HEADERS` say."""
    memory = plan.memory
    found = [
        plan.subject,
        f"{memory.weights_bytes / GIB:.2f}",
        f"{memory.kv_bytes_per_token / 1024:.1f}",
    ]
    if plan.alone is None or plan.cold_start is None or plan.cost is None:
        return [*found, "none", *["-"] * (len(HEADERS) - 3)]
    return [
        *found,
        str(memory.requests),
        f"{plan.alone.ttft_seconds * 1000:.0f}",
        f"{plan.alone.token_seconds * 1000:.1f}",
        f"{plan.alone.answer_seconds:.2f}",
        f"{plan.highest_qps:.1f}",
        str(plan.replicas),
        f"{plan.cold_start['total']:.0f}",
        f"{plan.cost.month_loaded:,.0f}",
    ]


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"

"""Who imports whom (docs/architecture.md), checked by reading the imports of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Each heavy library -> the files that may import it, as patterns of module names with spaces between.
OWNERS = {
    # `device` asks vLLM what machine it is on, before there is an engine.
    "vllm": "server.engine.vllm_engine server.engine.device",
    "chromadb": "retrieval.search.chroma",
    "chromadb_rust_bindings": "retrieval.search.launch",
    "tantivy": "retrieval.lexical",
    # What is counted, what the library has no class for, and the page.
    "prometheus_client": (
        "server.telemetry.metrics server.telemetry.collectors server.telemetry.exposition"
    ),
    "modal": "modal_deploy",
    "opentelemetry": "server.telemetry.tracing",
    # One file for each kind of model that we take from it.
    "sentence_transformers": "retrieval.embed.torch_embedder retrieval.rerank.cross_encoder",
    "openvino": "retrieval.embed.openvino_embedder",
    "onnxruntime": "retrieval.embed.onnx_embedder",
    "kreuzberg": "retrieval.ingest.extract",
    "sqlalchemy": "server.catalog.*",
    "alembic": "server.catalog.*",
    "uvicorn": "server.listener",
}
#: What takes a second or more to import: never at the top of a file, so that the command line stays quick.
SLOW = {
    "vllm",
    "chromadb",
    "sentence_transformers",
    "openvino",
    "onnxruntime",
    "torch",
    "transformers",
}
#: What a command's help has no use for, quick or not.
NOT_FOR_HELP = {
    "alembic", "fastapi", "httpx", "kreuzberg", "modal", "numpy", "opentelemetry", "prometheus_client", "pydantic",
    "pydantic_settings", "rich", "sqlalchemy", "starlette", "tantivy", "tokenizers", "uvicorn",
}  # fmt: skip
#: `retrieval` knows nothing of HTTP servers, OpenAI, Prometheus, vLLM or the wire.
FOREIGN_TO_RETRIEVAL = {
    "server", "fastapi", "starlette", "uvicorn", "openai", "prometheus_client", "vllm", "pydantic",
    "pydantic_settings", "sqlalchemy", "modal",
}  # fmt: skip
#: Who may import the module on the left.
IMPORTERS = {
    "server.cli": {"server.cli.*", "modal_deploy"},
    "server.app": {"server.cli.*", "modal_deploy"},
    "server.services": {
        "server.app", "server.deps", "server.api.*", "server.cli.*", "modal_deploy",
    },
    "server.knowledge": {
        "server.services", "server.handover", "server.replica", "server.deps", "server.api.*",
    },
    "server.replica": {"server.services"},
    "server.engines": {"server.services", "modal_deploy"},
    "server.engine.vllm_engine": {"server.engines"},
    "server.engine.device": {"server.engines"},
    # Settings check the script while they are read, so that a mistake names its field.
    "server.engine.upstream": {"server.engines", "server.engine.upstream.*"},
    "server.engine.scripted": {"server.engines", "server.settings"},
    "retrieval.search.chroma": {"retrieval.search", "retrieval.search.*"},
    "server.catalog.tables": {"server.catalog.*"},
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module. `typing_only`: below `if TYPE_CHECKING`; `lazy`: inside a function."""

    name: str
    line: int
    typing_only: bool
    lazy: bool

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


@cache
def modules() -> dict[str, Path]:
    """Our modules by dotted name; a package by its own name."""
    files = [path for package in ("server", "retrieval") for path in (ROOT / package).rglob("*.py")]
    found = {"modal_deploy": ROOT / "modal_deploy.py"}
    for path in files:
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = (
            path
        )
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(modules()[module].read_text())
    return tuple(_imports(tree, typing_only=False, lazy=False))


def _imports(node: ast.AST, *, typing_only: bool, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for name in _names(child):
                yield Import(name, child.lineno, typing_only, lazy)
            continue
        guarded = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, typing_only=typing_only or guarded, lazy=lazy or function)


def _names(statement: ast.Import | ast.ImportFrom) -> Iterable[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    assert statement.level == 0, f"a relative import in line {statement.lineno}"
    module = statement.module or ""
    # `from package import name` imports the module `package.name` where there is one.
    inner = [f"{module}.{alias.name}" for alias in statement.names]
    ours = [name for name in inner if name in modules()]
    return ours if len(ours) == len(inner) else [module, *ours]


def offenders(wanted: str, allowed: Iterable[str]) -> list[str]:
    """Who imports `wanted` (or below it) and matches none of the patterns."""
    return [
        f"{module}:{found.line} imports {found.name}"
        for module in modules()
        for found in imports(module)
        if found.name == wanted or found.name.startswith(f"{wanted}.")
        if not any(fnmatchcase(module, pattern) for pattern in allowed)
    ]


def test_the_reading_itself_sees_what_is_there() -> None:
    assert len(modules()) > 50
    found = {imported.name for imported in imports("server.app")}
    assert {"server.api.chat", "server.services", "fastapi"} <= found
    assert any(imported.lazy for imported in imports("server.engine.vllm_engine"))
    assert any(imported.typing_only for imported in imports("server.cli.serve"))


def test_retrieval_knows_nothing_of_the_server() -> None:
    for library in sorted(FOREIGN_TO_RETRIEVAL):
        allowed = [module for module in modules() if not module.startswith("retrieval")]
        assert offenders(library, allowed) == []


@pytest.mark.parametrize("module", IMPORTERS)
def test_only_the_layer_above_imports(module: str) -> None:
    below = [name for name in modules() if name == module or name.startswith(f"{module}.")]
    assert below, "the rule is about a module that is no more"
    assert offenders(module, {*IMPORTERS[module], *below}) == []


def test_the_api_imports_no_concrete_engine_or_store() -> None:
    concrete = ("server.engine.", "retrieval.search", "retrieval.lexical", "server.catalog.")
    for module in (name for name in modules() if name.startswith("server.api")):
        for found in imports(module):
            if found.name != "server.engine.base":
                assert not found.name.startswith(concrete), (module, found)


def test_the_wire_is_pydantic_alone() -> None:
    free = {*sys.stdlib_module_names, "pydantic"}
    for module in (name for name in modules() if name.startswith("server.wire")):
        for found in imports(module):
            assert found.top in free or found.name.startswith("server.wire"), (module, found)


def test_planning_needs_the_standard_library_alone() -> None:
    for module in (
        name for name in modules() if name.startswith(("server.capacity", "server.prof"))
    ):
        for found in imports(module):
            ours = found.name.startswith(("server.capacity", "server.profiles"))
            assert ours or found.top in sys.stdlib_module_names, (module, found)


def test_retrieval_meets_an_engine_in_grounding_alone() -> None:
    """Others build the two and hand them over; nobody else may use both."""
    meeting = [
        module
        for module in modules()
        if {"retrieval.pipeline", "retrieval.pack"} & (names := {i.name for i in imports(module)})
        and any(name.startswith("server.engine") for name in names)
    ]
    assert sorted(meeting) == ["server.grounding"]


@pytest.mark.parametrize("library", OWNERS)
def test_one_file_owns_each_heavy_library(library: str) -> None:
    owners = OWNERS[library].split()
    assert offenders(library, owners) == []
    for owner in owners:
        assert any(
            found.top == library
            for module in modules()
            if fnmatchcase(module, owner)
            for found in imports(module)
        ), f"{owner} does not import it any more: the rule can go"


def test_slow_libraries_are_imported_inside_functions() -> None:
    early = [
        f"{module}:{found.line} imports {found.name}"
        for module in modules()
        for found in imports(module)
        if found.top in SLOW and not (found.lazy or found.typing_only)
    ]
    assert early == []


def loaded_after(program: str) -> set[str]:
    """The top names of all modules that a fresh Python holds after the program."""
    listing = "\nprint(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}{listing}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split("\n"))


def test_the_command_line_s_help_imports_next_to_nothing() -> None:
    program = """from server.cli import COMMANDS, main
for command in ("", *(module.__name__.rpartition(".")[2] for module in COMMANDS)):
    try:
        main([command, "--help"] if command else ["--help"])
    except SystemExit as end:
        assert not end.code, command
"""
    assert loaded_after(program) & {*SLOW, *NOT_FOR_HELP} == set()


def test_a_command_on_the_catalog_imports_nothing_of_models(tmp_path: Path) -> None:
    program = f"""from server.cli import main
assert main(["stores", "--data-dir", {str(tmp_path)!r}]) == 0
"""
    assert loaded_after(program) & {*SLOW, "fastapi", "tantivy", "tokenizers", "kreuzberg"} == set()


def test_no_cycles() -> None:
    graph = {
        module: {i.name for i in imports(module) if i.name in modules() and not i.typing_only}
        - {module}
        for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_settings_alone_read_the_environment() -> None:
    readers = {module for module, path in modules().items() if _reads_environment(path)}
    # The deploy file reads what the shell that deploys chose, which is no setting of the server.
    assert readers == {"server.settings", "modal_deploy"}


def _reads_environment(path: Path) -> bool:
    """Whether a file uses `os.environ` or `os.getenv` for anything but setting a variable."""
    tree = ast.parse(path.read_text())
    writes = 0
    uses = 0
    for node in ast.walk(tree):
        uses += (
            ast.unparse(node) in ("os.environ", "os.getenv")
            if isinstance(node, ast.Attribute)
            else 0
        )
        target = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        default = isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.setdefault"
        writes += (target and ast.unparse(node.value) == "os.environ") or default
    return uses > writes

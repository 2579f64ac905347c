"""`python -m bench.quality DIR`: the quality of retrieval at the defaults, and what was tried beside them.

DIR holds the data sets. Writes `docs/quality.json`, and from it the tables of `docs/quality.md`. A quarter of
an hour on two cores; vectors are kept in `build/quality`, so that a second run takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.conditions import surroundings
from bench.quality.measure import measure
from bench.quality.rankings import Corpus, Vectorizer
from bench.quality.sets import NAMES, rare_words, read_sets, titles_as_headings, wiki_headings
from bench.quality.tables import FILE, publish
from bench.quality.variants import Variant, contexts, fusions, variants
from bench.report import ROOT
from server.embedding import open_embedder
from server.evaluation import DataSet, EvaluationError
from server.settings import load_settings

EVAL = "import sys; from server.cli import main; sys.exit(main())"
Tried = Callable[[Corpus], Iterable[Variant]]
PACKAGES = ("tantivy", "torch", "openvino")


def main() -> int:
    """Measure and write; status 1 when a data set cannot be used."""
    options = parse()
    try:
        found = {name: part(options) for name, part in PARTS.items() if name in options.only}
    except (EvaluationError, subprocess.CalledProcessError) as error:
        print(f"bench.quality: {error}", file=sys.stderr)
        return 1
    target = ROOT / FILE
    saved = json.loads(target.read_text(encoding="utf-8")) | found
    target.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    publish(ROOT)
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run. Exits with status 2 for a bad one."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help=f"holds {', '.join(NAMES)}")
    add(
        "--only",
        nargs="+",
        choices=PARTS,
        default=tuple(PARTS),
        help="keep the other part as saved",
    )
    add("--vectors", type=Path, default=ROOT / "build" / "quality", help="where vectors are kept")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What `groundwire eval` prints of each set."""
    return {name: _evaluated(options.directory / name) for name in NAMES}


def tried(options: argparse.Namespace) -> dict[str, Any]:
    """All variants on all sets. Raises EvaluationError."""
    settings = load_settings()
    embedder = settings.model_dump(
        include={"embedder", "embedder_backend", "query_precision", "query_prefix"}
    )
    seen = {**surroundings(ROOT, PACKAGES), **embedder}
    vectorizer = Vectorizer(open_embedder(settings, print), options.vectors, embedder)
    found = {}
    for name, (data, its_variants) in chosen(read_sets(options.directory)).items():
        print(name, flush=True)
        corpus = Corpus(data, vectorizer)
        found[name] = measure(corpus, its_variants(corpus), lambda variant: print(f"  {variant}"))
    return {"conditions": seen, "sets": found}


def chosen(sets: Mapping[str, DataSet]) -> dict[str, tuple[DataSet, Tried]]:
    """Every set, and those made from them, with what is tried on it."""
    xquad, chunks = sets["xquad_en_wiki"], sets["chunking_eval"]
    given: dict[str, tuple[DataSet, Tried]] = {n: (data, variants) for n, data in sets.items()}
    return given | {
        "xquad_en_wiki, titles as headings": (titles_as_headings(xquad), lambda _: contexts()),
        "chunking_eval, wiki headings": (wiki_headings(chunks), lambda _: contexts()),
        "xquad_en_wiki, rare words": (rare_words(xquad), lambda _: fusions()),
    }


def _evaluated(directory: Path) -> Mapping[str, Any]:
    command = [sys.executable, "-c", EVAL, "eval", str(directory), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    ways: dict[str, Any] = json.loads(done.stdout)
    return ways


#: The parts of the JSON, and what makes them.
PARTS = {"measured": measured, "tried": tried}

if __name__ == "__main__":
    sys.exit(main())

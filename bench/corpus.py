"""A made-up corpus: as many passages as asked for, each about one thing, the same on every machine."""

from __future__ import annotations

import random
from pathlib import Path

SUBJECTS = "valve turbine ledger harbour orchard antenna glacier loom kiln beacon archive".split()  # noqa: SIM905
PLACES = "Arden Bexley Corin Dunmore Elswick Farrow Galway Hythe Ilford Jarrow Kelso".split()  # noqa: SIM905
VERBS = "inspected repaired measured relocated catalogued painted flooded insured sold".split()  # noqa: SIM905


def write_corpus(folder: Path, passages: int, per_file: int = 100) -> None:
    """Markdown files of `per_file` sections; a section is one passage of about 90 words."""
    folder.mkdir(parents=True)
    rng = random.Random(20260101)
    for first in range(0, passages, per_file):
        count = min(per_file, passages - first)
        sections = [_section(rng, first + i) for i in range(count)]
        (folder / f"part-{first:06d}.md").write_text("\n\n".join(sections) + "\n")


def _section(rng: random.Random, number: int) -> str:
    subject, place = rng.choice(SUBJECTS), rng.choice(PLACES)
    sentences = [
        f"In {1900 + rng.randrange(120)} the {subject} of {place} was {rng.choice(VERBS)} "
        f"by crew {rng.randrange(1000)} at a cost of {rng.randrange(10_000)} crowns."
        for _ in range(5)
    ]
    return f"## Record {number}: the {subject} of {place}\n\n" + " ".join(sentences)


def question(number: int) -> str:
    rng = random.Random(number)
    return (
        f"What happened to the {rng.choice(SUBJECTS)} of {rng.choice(PLACES)} in record {number}?"
    )

"""A made-up corpus: as many passages as asked for, each about one thing, the same on every machine."""

from __future__ import annotations

import random
from pathlib import Path

SUBJECTS = "valve turbine ledger harbour orchard antenna glacier loom kiln beacon archive".split()  # noqa: SIM905
PLACES = "Arden Bexley Corin Dunmore Elswick Farrow Galway Hythe Ilford Jarrow Kelso".split()  # noqa: SIM905
#: Of a passage: with so many, two passages are more than one chunk, so that each becomes its own.
SENTENCES = 7
VERBS = "inspected repaired measured relocated catalogued painted flooded insured sold".split()  # noqa: SIM905


def write_corpus(folder: Path, passages: int, per_file: int = 100, seed: int = 0) -> None:
    """Markdown files of `per_file` sections; a section is one passage, and one chunk."""
    folder.mkdir(parents=True)
    rng = random.Random(20260101 + seed)
    for first in range(0, passages, per_file):
        count = min(per_file, passages - first)
        sections = [_section(rng, first + i) for i in range(count)]
        (folder / f"part-{first:06d}.md").write_text("\n\n".join(sections) + "\n")


def _section(rng: random.Random, number: int) -> str:
    subject, place = rng.choice(SUBJECTS), rng.choice(PLACES)
    text = _sentences(rng, subject, place, SENTENCES)
    return f"## Record {number}: the {subject} of {place}\n\n{text}"


def passage_text(number: int, topic: int) -> str:
    """The text of passage `number` of a made-up store; those of one topic share subject and place."""
    about = random.Random(f"topic {topic}")
    subject, place = about.choice(SUBJECTS), about.choice(PLACES)
    return _sentences(random.Random(f"passage {number}"), subject, place, SENTENCES)


def story(number: int, sentences: int) -> str:
    """`sentences` sentences about one thing."""
    rng = random.Random(f"story {number}")
    return _sentences(rng, rng.choice(SUBJECTS), rng.choice(PLACES), sentences)


def _sentences(rng: random.Random, subject: str, place: str, count: int) -> str:
    return " ".join(
        f"In {1900 + rng.randrange(120)} the {subject} of {place} was {rng.choice(VERBS)} "
        f"by crew {rng.randrange(1000)} at a cost of {rng.randrange(10_000)} crowns."
        for _ in range(count)
    )


def question(number: int) -> str:
    """A question that names what it is about, different from every other number's."""
    rng = random.Random(number)
    return (
        f"What happened to the {rng.choice(SUBJECTS)} of {rng.choice(PLACES)} in record {number}?"
    )


def twin(text: str) -> str:
    """The question with a small first letter: it finds the same, and no cache knows it by the other.

    Whoever looks up what a question finds asks this one, so that the question itself is still a new one.
    """
    return text[:1].lower() + text[1:]

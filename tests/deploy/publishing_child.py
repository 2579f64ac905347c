"""A writer in a process of its own: publishes the next edition of its documents for each line that it reads.

Arguments: a folder for the documents, a data directory, the published directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from server.catalog import sqlite_url
from server.embedding import open_embedder
from server.ingestion import IngestJob, publish_paths
from server.settings import Settings

SUBJECTS = {
    "loans.md": "A loan of the reading room lasts at most thirty days.",
    "tea.txt": "Morva tea is steeped for eleven minutes in cold water.",
    "ferry.txt": "The ferry to Zanzibar leaves on Tuesdays after the rain.",
    "quagga.txt": "The quagga grazed at dawn in the valley of Karoo.",
    "gravel.txt": "Gravel is sold by the ton at the harbour of Odense.",
    "clock.txt": "The clock of the town hall strikes thirteen at noon.",
}


def write_edition(folder: Path, edition: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in SUBJECTS.items():
        (folder / name).write_text(f"{text} So says edition {edition}.\n")


async def main(documents: Path, data_dir: Path, published: Path) -> None:
    embedder = open_embedder(Settings(), lambda _: None)
    url = sqlite_url(data_dir / "catalog.db")
    job = IngestJob((documents,), "docs", data_dir, url, prune=True)
    for edition, _ in enumerate(sys.stdin, start=1):
        write_edition(documents, edition)
        publication = await publish_paths(job, embedder, published)
        assert publication.new
        assert publication.report.ok
        print(publication.version, flush=True)


if __name__ == "__main__":
    anyio.run(main, *map(Path, sys.argv[1:]))

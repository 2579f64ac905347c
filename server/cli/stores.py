"""`groundwire stores`: which stores there are, and what they hold."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from server.cli.local import READING_SETTINGS, clean, readable

if TYPE_CHECKING:
    from server.catalog import Catalog, Store, StoreTotals
    from server.settings import Settings


SETTINGS = READING_SETTINGS


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "stores",
        help="list the stores",
        description="List the stores with their ids, files and embedders.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the stores to stdout; status 1 when the catalog cannot be read."""
    from server.catalog import CatalogError
    from server.published import PublishedError

    try:
        with readable(settings) as here:
            stores = asyncio.run(_stores(here))
    except (CatalogError, PublishedError) as error:
        print(f"groundwire stores: {clean(str(error))}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([asdict(store) | asdict(totals) for store, totals in stores]))
    else:
        _print(stores)
    return 0


async def _stores(settings: Settings) -> list[tuple[Store, StoreTotals]]:
    from server.catalog import LOCAL_TENANT, Catalog

    async with await Catalog.open(settings.resolved_catalog_url) as catalog:
        return [
            (store, await _totals(catalog, store))
            for store in await catalog.list_stores(LOCAL_TENANT)
        ]


async def _totals(catalog: Catalog, store: Store) -> StoreTotals:
    from server.catalog import StoreTotals

    if store.adopted is None:
        return await catalog.store_totals(store.id)
    return StoreTotals(store.adopted.files, store.adopted.passages, usage_bytes=0)


def _print(stores: list[tuple[Store, StoreTotals]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # An id is there to be copied: it must not be broken over lines.
    table = Table(
        "name", Column("id", no_wrap=True), "files", "passages", "embedder", "adopted from"
    )
    for store, totals in stores:
        source = store.adopted.collection if store.adopted else "-"
        cells = (store.name, store.id, totals.files, totals.passages, store.embedder or "-", source)
        table.add_row(*(Text(clean(str(cell)), overflow="fold") for cell in cells))
    Console().print(table)

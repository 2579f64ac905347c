"""The stores' sizes under a bounded number of labels. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from server.catalog import FileCount, Store


@dataclass(frozen=True, slots=True)
class IndexSizes:
    """Passages by label, files by label and state, versions by label."""

    passages: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    versions: Mapping[str, float] = field(default_factory=dict)


NO_INDEX = IndexSizes()


def store_labels(stores: Sequence[Store], readers: Collection[str], other: str) -> dict[str, str]:
    """What each of all the stores is called on the page, by its id; `readers` are the tenants that may read it.

    A store is called by its name where it is the only one that has it, else by its id. Where there are several
    tenants, with stores or with keys, all are called by their ids: nobody need learn other people's names.
    """
    named = Counter(store.name for store in stores)
    one_tenant = len({*readers, *(store.tenant for store in stores)}) <= 1
    return {
        store.id: store.name
        if one_tenant and named[store.name] == 1 and store.name not in ("", other)
        else store.id
        for store in stores
    }


def sizes(
    stores: Sequence[Store],
    counts: Sequence[FileCount],
    limit: int,
    readers: Collection[str],
    other: str,
) -> IndexSizes:
    """The sizes of the first `limit` stores by name, and of the rest together as `other`."""
    labels = store_labels(stores, readers, other)
    ordered = sorted(stores, key=lambda store: (store.name, store.id))
    shown = {store.id: labels[store.id] for store in ordered[:limit]}
    passages: Counter[str] = Counter(dict.fromkeys(shown.values(), 0))
    files: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        label = shown.get(count.store_id, other)
        files[label, count.status] += count.files
        if count.status == "completed":
            passages[label] += count.passages
    for store in stores:
        if store.adopted is not None:
            label = shown.get(store.id, other)
            passages[label] += store.adopted.passages
            files[label, "completed"] += store.adopted.files
    versions = {shown[store.id]: float(store.version) for store in stores if store.id in shown}
    return IndexSizes(dict(passages), dict(files), versions)

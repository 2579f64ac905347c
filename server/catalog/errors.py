"""What the catalog refuses. Nothing here knows HTTP; `server/errors.py` maps these to statuses."""

from __future__ import annotations

from collections.abc import Sequence


class CatalogError(Exception):
    """The root: whoever calls the catalog needs to catch only this."""


class CatalogUnavailable(CatalogError):
    """The catalog's database cannot be opened, or was written by a newer version."""


class StoreNotFound(CatalogError):
    """No store of this tenant has that id or name."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"no vector store has the id or name {ref!r}")
        self.ref = ref


class AmbiguousStore(CatalogError):
    """Several stores of this tenant have that name: only an id tells them apart."""

    def __init__(self, name: str, ids: Sequence[str]) -> None:
        super().__init__(
            f"{len(ids)} vector stores are named {name!r}; use an id instead: {', '.join(ids)}"
        )
        self.name = name
        self.ids = tuple(ids)


class InvalidStoreName(CatalogError):
    """The name is reserved or cannot be stored."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"a vector store cannot be named {name!r}: {reason}")
        self.name = name
        self.reason = reason


class FileNotFound(CatalogError):
    """No file of this tenant (or of this store) has that id."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"no file has the id {file_id!r}")
        self.file_id = file_id


class EmbedderConflict(CatalogError):
    """The store's vectors were made by another embedder: the two cannot be compared."""

    def __init__(self, store: str, recorded: str, offered: str) -> None:
        super().__init__(
            f"the vector store {store!r} was built with the embedder {recorded}, and {offered} is "
            "configured: run `groundwire reindex` on the store, or set the embedder back"
        )
        self.recorded = recorded
        self.offered = offered

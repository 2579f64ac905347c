"""The catalog: what the user gave us and what was acknowledged. Vectors and keywords are derived from it."""

from server.catalog.blobs import BlobStore, content_hash
from server.catalog.catalog import Catalog
from server.catalog.database import sqlite_url
from server.catalog.errors import (
    AmbiguousStore,
    CatalogError,
    CatalogUnavailable,
    EmbedderConflict,
    FileNotFound,
    InvalidStoreName,
    StoreNotFound,
)
from server.catalog.records import (
    LOCAL_TENANT,
    Adopted,
    File,
    FileCount,
    FileVersion,
    Membership,
    RebuiltFile,
    Store,
    StoreTotals,
    index_name,
    is_store_id,
    new_file_id,
    new_store_id,
)

__all__ = [
    "LOCAL_TENANT",
    "Adopted",
    "AmbiguousStore",
    "BlobStore",
    "Catalog",
    "CatalogError",
    "CatalogUnavailable",
    "EmbedderConflict",
    "File",
    "FileCount",
    "FileNotFound",
    "FileVersion",
    "InvalidStoreName",
    "Membership",
    "RebuiltFile",
    "Store",
    "StoreNotFound",
    "StoreTotals",
    "content_hash",
    "index_name",
    "is_store_id",
    "new_file_id",
    "new_store_id",
    "sqlite_url",
]

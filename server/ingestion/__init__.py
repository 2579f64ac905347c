"""Ingestion: files and folders become a searchable store."""

from server.ingestion.adopt import AdoptJob, adopt_collection
from server.ingestion.ingest import ingest_paths
from server.ingestion.lock import IngestBusy, IngestError
from server.ingestion.reindex import ReindexJob, reindex_stores
from server.ingestion.report import AdoptReport, IngestEvent, IngestReport, ReindexReport
from server.ingestion.run import IngestJob

__all__ = [
    "AdoptJob",
    "AdoptReport",
    "IngestBusy",
    "IngestError",
    "IngestEvent",
    "IngestJob",
    "IngestReport",
    "ReindexJob",
    "ReindexReport",
    "adopt_collection",
    "ingest_paths",
    "reindex_stores",
]

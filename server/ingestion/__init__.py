"""Ingestion: files and folders become a searchable store."""

from server.ingestion.ingest import ingest_paths
from server.ingestion.lock import IngestBusy, IngestError
from server.ingestion.report import IngestEvent, IngestReport
from server.ingestion.run import IngestJob

__all__ = [
    "IngestBusy",
    "IngestError",
    "IngestEvent",
    "IngestJob",
    "IngestReport",
    "ingest_paths",
]

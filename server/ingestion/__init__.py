"""Ingestion: files and folders become a searchable store."""

from server.ingestion.adopt import AdoptJob, adopt_collection
from server.ingestion.ingest import ingest_paths
from server.ingestion.lock import IngestBusy, IngestError
from server.ingestion.publish import Publication, publish_paths
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
    "Publication",
    "ReindexJob",
    "ReindexReport",
    "adopt_collection",
    "ingest_paths",
    "publish_paths",
    "reindex_stores",
]

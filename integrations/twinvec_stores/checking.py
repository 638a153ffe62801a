"""Damage: compares what a store returns with what was written and with what its own indexes say."""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinvec.errors import StoreEngineError, StoreError
from twinvec.vectors import Float32, Int32, SparseVector
from twinvec_stores.config import FieldType
from twinvec_stores.filters.conditions import Eq, Filter, HasWords, Range
from twinvec_stores.filters.fields import field_values
from twinvec_stores.filters.matching import words
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import comparable
from twinvec_stores.protocol import HybridStore, check_limit
from twinvec_stores.records import DenseQuery, Record, SparseQuery, checksum

Float64: TypeAlias = NDArray[np.float64]
Progress = Callable[[int], None]
_PAGE = 512
_REPORTED = 1000  # findings that are reported
_UNIT = 2e-5  # deviation of a norm from 1: twice the tolerance for storing rows unchanged
_GROUPS = 16  # queries that together cover all sparse keys: the fewer terms per sum, the smaller the changes it reveals
_TOLERANCE = 1e-5  # relative tolerance of a float32 sum
_NEAR, _MISSED = 1e-3, 1e-3  # a graph may miss a few records in a million, even their own vectors
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Damage:
    """One finding.

    Attributes:
        id: the record's id; None if the finding concerns more than one.
        reason: what is wrong.
    """

    id: str | None
    reason: str


@dataclass(frozen=True)
class Verification:
    """The result of ``verify_store``.

    Attributes:
        records: number of records read.
        total: number of records according to the store.
        unsigned: records read that were written before checksums existed; only their form is checked.
        damages: the findings, at most 1,000.
    """

    records: int
    total: int
    unsigned: int
    damages: tuple[Damage, ...]

    @property
    def intact(self) -> bool:
        """Return whether nothing was found."""
        return not self.damages


def verify_store(store: HybridStore, *, sample: int | None = None, progress: Progress | None = None) -> Verification:
    """Look for damage in a store.

    Every record is compared with the checksum it was written with, looked up again by its id, and checked for validity.
    A full run also compares the engine's indexes with the records: the matches of every sparse key, every term and
    every value of a declared field, and whether each record finds itself through the graph.

    Args:
        store: any store; nothing is written.
        sample: read only this many records, starting at a random place; the indexes are not checked.
        progress: called with the number of records read so far.

    Returns:
        The findings. A store that cannot be read any further is also a finding.

    Raises:
        StoreClosedError: the store is closed.
    """
    if sample is not None:
        check_limit(sample, name="sample")
    total = store.count()
    check = _Check(store, whole=sample is None and store.has_indexes)
    try:
        for page in pages(store, sample):
            check.take(page)
            if progress is not None:
                progress(check.records)
        check.indexes(total)
    except StoreError as error:
        check.report(None, f"the store cannot be read any further: {error}")
    return Verification(check.records, total, check.unsigned, tuple(check.damages))


def undamaged(record: Record) -> Record:
    """Return a record read together with its vectors.

    Raises:
        StoreEngineError: it differs from what was written.
    """
    if (reason := _damage(record)) is not None:
        raise StoreEngineError(f"the record {record.id!r} is damaged: {reason}; see twinvec store verify")
    return record


def pages(store: HybridStore, sample: int | None) -> Iterator[list[Record]]:
    """Yield records with their vectors: all, or so many from a random place."""
    if sample is None:
        yield from store.scroll_all(limit=_PAGE, with_vectors=True)
        return
    left = min(sample, store.count())
    # engines sort by a hash of the ids, so the records after any place are a sample
    for start in (str(uuid.uuid4()), None) if store.has_indexes else (None,):
        cursor, done = start, False
        while left > 0 and not done:
            page, cursor = store.scroll(cursor, limit=min(left, _PAGE), with_vectors=True)
            left -= len(page)
            done = cursor is None
            yield page


class _Check:
    """Findings, and what the indexes must return for the records read."""

    def __init__(self, store: HybridStore, *, whole: bool) -> None:
        self._store, self._config, self._whole = store, store.config, whole
        self.records = self.unsigned = 0
        self.damages: list[Damage] = []
        self._frequencies: Counter[int] = Counter()
        self._values: Counter[tuple[str, Any]] = Counter()
        self._sums: dict[str, Float64] = {}  # what each record scores for the queries of ``_sparse_index``

    def report(self, id: str | None, reason: str) -> None:
        if len(self.damages) < _REPORTED:
            self.damages.append(Damage(id, reason))

    def take(self, page: list[Record]) -> None:
        """Check records individually."""
        self.records += len(page)
        found = {record.id for record in self._store.get([record.id for record in page])}
        for record in page:
            self.unsigned += record.checksum is None
            if (reason := _damage(record)) is not None:
                self.report(record.id, reason)
            if record.id not in found:
                self.report(record.id, "it exists, but is not found by its id")
            if self._whole:
                self._keep(record)

    def _keep(self, record: Record) -> None:
        if record.id in self._sums:
            self.report(record.id, "it exists more than once")
        self._sums[record.id] = np.zeros(_GROUPS)
        if record.sparse is not None:
            keys = record.sparse.indices
            self._frequencies.update(keys.tolist())
            np.add.at(self._sums[record.id], keys % _GROUPS, _weights(keys) * record.sparse.values.astype(np.float64))
        for name, kind in self._config.fields.items():
            given = field_values(record.metadata, name)
            self._values.update((name, value) for value in {part for v in given for part in _compared(v, kind)})

    def indexes(self, total: int) -> None:
        """Compare the engine's indexes with the records."""
        if not self._whole:
            return
        if self.records != total:
            self.report(None, f"the store reports {total} records but returns {self.records}")
        self._sparse_index()
        self._terms()
        self._fields()
        self._graph()

    def _sparse_index(self) -> None:
        every = np.array(sorted(self._frequencies), dtype=np.int32)
        for group in range(_GROUPS if self._sums else 0):
            keys = every[every % _GROUPS == group]
            if not len(keys):
                continue
            query = SparseQuery(SparseVector(keys, _weights(keys)))
            (hits,) = self._store.search([query], limit=len(self._sums), exact=True)
            scores = dict(hits)
            for id, sums in self._sums.items():
                if abs(scores.get(id, 0.0) - sums[group]) > _TOLERANCE * sums[group]:
                    self.report(id, "the sparse index has other weights than the record")

    def _terms(self) -> None:
        if not self._config.idf or not self._frequencies:
            return
        keys = np.array(sorted(self._frequencies), dtype=np.int32)
        for key, n in zip(keys.tolist(), self._store.document_frequencies(keys).tolist(), strict=True):
            if n != self._frequencies[key]:
                self.report(None, f"the term {key} is in {self._frequencies[key]} records, its index has {n}")

    def _fields(self) -> None:
        for (name, value), n in self._values.items():
            found = self._store.count(_condition(name, value, self._config.fields[name]))
            if found != n:
                self.report(None, f"{name} {value!r:.60} is in {n} records, its index has {found}")

    def _graph(self) -> None:
        info = self._store.info()
        if self._config.dim is None or (info.has_graph is False and self._config.quantization is None):
            return  # exact search compares the vectors themselves, which have been read
        lost = 0
        for page in self._store.scroll_all(limit=_PAGE, with_vectors=True):
            queries = [DenseQuery(record.dense) for record in page if record.dense is not None]
            rankings = self._store.search(queries, limit=1)
            lost += sum(not hits or hits[0].score < 1 - _NEAR for hits in rankings)
        if lost > self.records * _MISSED:
            self.report(None, f"{lost} records are not found by their own vectors: rebuild the graph (optimize)")


def _damage(record: Record) -> str | None:
    """Return what is wrong with a record that was read with its vectors."""
    if record.checksum is not None and record.checksum != checksum(record):
        return "its content differs from what was written"
    if record.dense is not None and not abs(np.linalg.norm(record.dense.astype(np.float64)) - 1) < _UNIT:
        return "its dense vector does not have length 1"
    if record.sparse is not None:
        indices, values = record.sparse.indices, record.sparse.values
        if not (np.all(indices[1:] > indices[:-1]) and np.all(values > 0) and np.all(np.isfinite(values))):
            return "its sparse vector is not sorted, or contains an impossible weight"
    return None


def _weights(keys: Int32) -> Float32:
    """Return a weight from 0.5 to 1.5 for each key, so that swapped keys change a sum."""
    return (0.5 + (keys.astype(np.int64) * 40503 % 65537) / 65537).astype(np.float32)


def _compared(value: Any, kind: FieldType) -> list[Any]:
    """Return the number of records that an index has for a value."""
    if kind == "text":
        return sorted(words(value))
    if kind == "datetime":
        return [moment(value)]
    return [comparable(value) if kind in ("integer", "float") else value]


def _condition(name: str, value: Any, kind: FieldType) -> Filter:
    if kind == "text":
        return HasWords(name, value)
    if kind == "datetime":
        at = (_EPOCH + datetime.timedelta(microseconds=value)).isoformat()
        return Range(name, gte=at, lte=at)
    return Eq(name, float(value) if kind == "float" else value)

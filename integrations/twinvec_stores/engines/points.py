"""Records and filters in Qdrant's terms, which Qdrant Edge and qdrant-client express slightly differently."""

from __future__ import annotations

import base64
import datetime
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from twinvec.errors import StoreEngineError
from twinvec.vectors import Float32, SparseVector
from twinvec_stores.config import StoreConfig
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
    Scalar,
    StartsWith,
)
from twinvec_stores.filters.fields import field_values, parse_field, readings
from twinvec_stores.filters.matching import words
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import Interval, comparable
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, checksum, point_id

DENSE, SPARSE = "dense", "sparse"
FIRST = "first"  # the first dims of the dense vectors
# candidates of a first pass for each one wanted, rescored with the full vectors
_OVERSAMPLING = {"int8": 2.0, "binary": 8.0}
_OVERSAMPLING_FIRST_DIM = 4
_EXACT, _CHECKSUM = "exact", "crc32"
_TOKENS = "tokens"  # payload field with the vectors of tokens, as base64
TERMS = "terms"  # payload field with the sparse keys, for exact document frequencies
_SMALL, _LONG, _LARGE = 1e-8, (1e15, 1e16), 1e30  # ranges in which engines misread 15-digit floats: see _payload
_DERIVED_FIELDS = "derived"
_DERIVED = {"datetime": "integer", "text": "keyword"}  # type of the engine's index: microseconds, and words
_MAX_PARTS = 4  # a path of 4 parts has 27 readings; longer ones are compared here
_HNSW_EF = 256  # candidates of a graph search in each segment, as measured in docs/decisions/segments.md
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


def indexes(config: StoreConfig) -> dict[str, str]:
    """Return the payload paths that have an index, and their kinds."""
    found = {TERMS: "integer"} if config.idf else {}
    for name, kind in config.fields.items():
        if kind in _DERIVED:
            found[_derived_path(name, config)] = _DERIVED[kind]
        else:
            found |= dict.fromkeys(_paths(name), kind)
    return found


def _paths(field: str) -> list[str]:
    """Return the payload paths under which a metadata field may be found."""
    return [
        ".".join(("metadata", *(f"{_key(part.key)}[]" if part.in_list else _key(part.key) for part in parts)))
        for parts in readings(field)
    ]


def _key(key: str) -> str:
    return key if _PLAIN_KEY.match(key) else f'"{key}"'


def _derived_path(field: str, config: StoreConfig) -> str:
    return f"{_DERIVED_FIELDS}.f{list(config.fields).index(field)}"


def _derived(metadata: Mapping[str, Any], config: StoreConfig) -> dict[str, list[Any]]:
    """Return the values that the engine compares instead of a record's declared dates and texts."""
    made: dict[str, list[Any]] = {}
    for i, (name, kind) in enumerate(config.fields.items()):
        values = field_values(metadata, name) if kind in _DERIVED else []
        if values:
            made[f"f{i}"] = (
                [moment(value) for value in values]
                if kind == "datetime"
                else sorted(set().union(*(words(value) for value in values)))
            )
    return made


class Dialect:
    """Points and filters in the form of one of the two packages.

    Args:
        models: ``qdrant_edge`` or ``qdrant_client.models``.
        config: the store's configuration.
    """

    def __init__(self, models: ModuleType, config: StoreConfig) -> None:
        """Keep the package's names."""
        self.models: Any = models
        self._config = config
        self._indexed = indexes(config)
        self.is_edge = models.__name__ == "qdrant_edge"

    def points(self, batch: RecordBatch) -> list[Any]:
        """Return a batch as points."""
        dense = self._rows(batch.dense) if batch.dense is not None else None
        first = self._rows(self._first(batch.dense)) if batch.dense is not None and self._config.first_dim else None
        make = self.models.Point if self.is_edge else self.models.PointStruct
        points = []
        for i, record in enumerate(batch):
            vector: dict[str, Any] = {}
            payload = {**_payload(record), _CHECKSUM: checksum(record)}
            if derived := _derived(record.metadata, self._config):
                payload[_DERIVED_FIELDS] = derived
            if dense is not None:
                vector[DENSE] = dense[i]
            if first is not None:
                vector[FIRST] = first[i]
            if record.sparse is not None:
                vector[SPARSE] = self.sparse(record.sparse)
                if self._config.idf:
                    payload[TERMS] = record.sparse.indices.tolist()
            if record.tokens is not None:
                payload[_TOKENS] = base64.b64encode(record.tokens).decode("ascii")
            points.append(make(id=point_id(record.id), vector=vector, payload=payload))
        return points

    def payload(self, *, with_vectors: bool) -> Any:
        """Return which payload to read of points that are read with or without their vectors."""
        if with_vectors or self._config.token_pool is None:
            return True
        if self.is_edge:
            return self.models.PayloadSelector.Exclude([_TOKENS])
        return self.models.PayloadSelectorExclude(exclude=[_TOKENS])

    def _rows(self, dense: Float32) -> Sequence[Any]:
        if self.is_edge:  # it reads buffers twice as fast as lists
            return [memoryview(row) for row in np.ascontiguousarray(dense)]
        rows: list[Any] = dense.tolist()
        return rows

    def _first(self, dense: Float32) -> Float32:
        """Return the first dims of rows, of length 1 again."""
        first = dense[..., : self._config.first_dim]
        lengths = np.linalg.norm(first, axis=-1, keepdims=True)
        shortened: Float32 = np.divide(first, lengths, out=np.zeros_like(first), where=lengths > 0)
        return shortened

    def sparse(self, row: SparseVector) -> Any:
        """Return a sparse row in the package's form."""
        return self.models.SparseVector(indices=row.indices.tolist(), values=row.values.tolist())

    def query(self, query: StoreQuery) -> tuple[Any, str]:
        """Return the query vector, and the name of the vectors to search."""
        if isinstance(query, DenseQuery):
            return query.vector.tolist(), DENSE
        return self.sparse(query.vector), SPARSE

    def prefetch(self, query: StoreQuery, limit: int, filter: Any, *, exact: bool) -> list[Any] | None:
        """Return the search over the first dims, whose results the query itself then ranks; None: there is none."""
        if exact or self._config.first_dim is None or not isinstance(query, DenseQuery):
            return None
        options = {
            "limit": _OVERSAMPLING_FIRST_DIM * limit,
            "filter": filter,
            "params": self.models.SearchParams(hnsw_ef=_HNSW_EF),
        }
        vector = self._first(query.vector).tolist()
        if self.is_edge:
            return [self.models.Prefetch(query=self.models.Query.Nearest(vector, using=FIRST), **options)]
        return [self.models.Prefetch(query=vector, using=FIRST, **options)]

    def parameters(self, query: StoreQuery, *, exact: bool) -> Any:
        """Return the search parameters."""
        if not isinstance(query, DenseQuery):
            return None
        oversampling = _OVERSAMPLING.get(self._config.quantization or "")
        rescored = self.models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
        quantization = rescored if oversampling is not None else None
        return self.models.SearchParams(exact=exact, hnsw_ef=_HNSW_EF, quantization=quantization)

    def filter(self, condition: Filter) -> Any:
        """Return a filter."""
        if isinstance(condition, And):
            return self.models.Filter(must=[self.filter(f) for f in condition.filters])
        if isinstance(condition, Or) and condition.filters:
            return self.models.Filter(should=[self.filter(f) for f in condition.filters])
        if isinstance(condition, Not):
            return self.models.Filter(must_not=[self.filter(condition.filter)])
        if isinstance(condition, Ne):
            return self.filter(Not(Eq(condition.field, condition.value)))
        if isinstance(condition, HasWords):
            path = _derived_path(condition.field, self._config)
            return self.models.Filter(must=[self._value(path, word) for word in sorted(words(condition.words))])
        return self.models.Filter(should=self._cases(condition) or [self._has_id([])])

    def answers(self, condition: Filter) -> bool:
        """Return whether the engine supports a condition on one field."""
        if isinstance(condition, HasId) or not hasattr(condition, "field"):
            return True
        if len(parse_field(condition.field)) > _MAX_PARTS:
            return False
        kind = self._config.fields.get(condition.field)
        if isinstance(condition, (Contains, StartsWith)):
            return condition.case_sensitive
        if isinstance(condition, HasWords):
            return kind == "text"
        given = condition.values if isinstance(condition, In) else (getattr(condition, "value", None),)
        of_moments = isinstance(condition, Range) and condition.of_moments
        return kind == "datetime" or not (of_moments or any(isinstance(value, datetime.date) for value in given))

    def term(self, key: int, filter: Filter) -> Any:
        """Return a filter for records that have a sparse key and also match another filter."""
        others = [] if filter == And() else [self.filter(filter)]
        return self.models.Filter(must=[self._value(TERMS, key), *others])

    def _cases(self, condition: Eq | In | Range | Contains | StartsWith | Exists | HasId | Or) -> list[Any]:
        """Return conditions of which one must hold."""
        if isinstance(condition, Or):  # without parts
            return []
        if isinstance(condition, HasId):
            return [self._has_id([point_id(id) for id in condition.ids])]
        if isinstance(condition, Exists):
            return [self.models.Filter(must_not=[self._is_empty(path)]) for path in _paths(condition.field)]
        return self._of_values(condition)

    def _of_values(self, condition: Eq | In | Range | Contains | StartsWith) -> list[Any]:
        paths, field = _paths(condition.field), condition.field
        if isinstance(condition, Range):
            interval = Interval.of(condition.numbers())
            if condition.of_moments:
                return self._numbers(_derived_path(field, self._config), interval, whole=True)
            return self._in_paths(field, interval)
        if isinstance(condition, Contains):
            return [self._field(path, match=self.models.MatchSubstring(substring=condition.text)) for path in paths]
        if isinstance(condition, StartsWith):
            return [self._field(path, match=self.models.MatchPrefix(prefix=condition.text)) for path in paths]
        values = condition.values if isinstance(condition, In) else (condition.value,)
        strings = [value for value in values if isinstance(value, str)]
        cases = [case for value in values if not isinstance(value, str) for case in self._equal(field, value)]
        if strings:
            cases += [self._field(path, match=self.models.MatchAny(any=strings)) for path in paths]
        return cases

    def _equal(self, field: str, value: Scalar) -> list[Any]:
        if isinstance(value, bool):
            same = _NumpyBool(value) if self.is_edge else value
            return [self._value(path, same) for path in _paths(field)]
        if isinstance(value, datetime.date):
            at = moment(value)
            return self._numbers(_derived_path(field, self._config), Interval(at, at), whole=True)
        assert not isinstance(value, str)
        return self._in_paths(field, Interval(comparable(value), comparable(value)))  # 1 and 1.0 are the same number

    def _in_paths(self, field: str, interval: Interval) -> list[Any]:
        cases: list[Any] = []
        for path in _paths(field):  # an index of integers takes greater numbers for the greatest integer
            cases += self._numbers(path, interval, whole=self._indexed.get(path) == "integer")
        return cases

    def _numbers(self, key: str, interval: Interval, *, whole: bool) -> list[Any]:
        """Return conditions, one of which holds for a number in the interval; ``whole``: only for integers."""
        within = interval.whole() if whole else interval
        if within is None:
            return []
        split = within.split()
        cases = [self._field(key, range=self._range(split.bounds))] if split.bounds is not None else []
        if split.whole:
            cases.append(self._field(key, match=self.models.MatchAny(any=split.whole)))
        for number in () if whole else split.floats:
            same = self._field(key, range=self._range({"gte": number, "lte": number}))
            others = self._field(key, match=self.models.MatchAny(any=within.rounded_to(number)))
            cases.append(self.models.Filter(must=[same], must_not=[others]))
        return cases

    def _value(self, key: str, value: Any) -> Any:
        return self._field(key, match=self.models.MatchValue(value=value))

    def _range(self, bounds: Mapping[str, float]) -> Any:
        floats = {name: _bound(name, bound) for name, bound in bounds.items()}
        return self.models.RangeFloat(**floats) if self.is_edge else self.models.Range(**floats)

    def _field(self, key: str, **condition: Any) -> Any:
        return self.models.FieldCondition(key=key, **condition)

    def _is_empty(self, key: str) -> Any:
        if self.is_edge:
            return self.models.IsEmptyCondition(key)
        return self.models.IsEmptyCondition(is_empty=self.models.PayloadField(key=key))

    def _has_id(self, ids: list[str]) -> Any:
        return self.models.HasIdCondition(set(ids)) if self.is_edge else self.models.HasIdCondition(has_id=ids)


class _NumpyBool:
    """What Qdrant Edge recognises as a bool: numpy's type, by its name; Python's counts as a number, as does numpy's
    before 2.3."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return self._value


_NumpyBool.__module__, _NumpyBool.__name__ = "numpy", "bool"


def _payload(record: Record) -> dict[str, Any]:
    """Return the payload stored with the vectors.

    Qdrant Edge returns one in ten floats with a different last digit. It therefore gets only 15 digits, and a record
    with longer floats also carries itself as a string. Even with 15 digits, it returns floats below 1e-8, above 1e36,
    and those written as sixteen digits and ".0", as one of their neighbours.
    """
    own = {"metadata": record.metadata, "provenance": record.provenance}
    payload = {"id": record.id, "text": record.text, "metadata": _shortened(record.metadata)}
    if not _is_kept(own):
        payload[_EXACT] = json.dumps(own)
    elif record.provenance:
        payload["provenance"] = record.provenance
    return payload


def _is_kept(value: Any) -> bool:
    """Return whether engines return every float in a value unchanged: 15 digits, neither tiny nor huge."""
    if isinstance(value, float):
        return value == 0 or (comparable(value) == value and _SMALL <= abs(value) < _LONG[0])
    if isinstance(value, Mapping):
        return all(_is_kept(inner) for inner in value.values())
    return not isinstance(value, (list, tuple)) or all(_is_kept(inner) for inner in value)


def _bound(name: str, bound: float) -> float:
    """Return a bound with a margin for tiny and huge floats, which are read as one of their neighbours."""
    number = float(bound)
    if abs(number) < sys.float_info.min or _SMALL <= abs(number) < _LARGE:
        return number
    outward = math.inf if name in ("gt", "lte") else -math.inf
    return math.nextafter(math.nextafter(number, outward), outward)


def _shortened(value: Any) -> Any:
    if isinstance(value, float):
        number = float(comparable(value))
        return int(number) if _LONG[0] <= abs(number) < _LONG[1] else number
    if isinstance(value, Mapping):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(inner) for inner in value]
    return value


def to_record(point: Any, config: StoreConfig) -> Record:
    """Return a point as a record, with the vectors that came with it.

    Raises:
        StoreEngineError: it is not one of our records, so it was damaged.
    """
    payload, vectors = point.payload, point.vector if isinstance(point.vector, dict) else {}
    try:
        own = json.loads(payload[_EXACT]) if _EXACT in payload else payload
        return Record(
            id=payload["id"],
            text=payload["text"],
            metadata=own["metadata"],
            provenance=own.get("provenance", {}),
            dense=np.array(vectors[DENSE], dtype=np.float32) if DENSE in vectors else None,
            sparse=_row(vectors.get(SPARSE)) if vectors and config.sparse else None,
            tokens=base64.b64decode(payload[_TOKENS], validate=True) if vectors and config.token_pool else None,
            checksum=payload.get(_CHECKSUM) if vectors else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreEngineError(f"the record of the point {point.id} is damaged ({error!r}): ingest it again") from None


def to_hits(points: Sequence[Any]) -> list[Hit]:
    """Return scored points as hits."""
    try:
        return [Hit(point.payload["id"], point.score) for point in points]
    except (KeyError, TypeError) as error:
        raise StoreEngineError(f"a record is damaged ({error!r}); see twinvec store verify") from None


def _row(sparse: Any) -> SparseVector:
    if sparse is None:  # an engine may omit empty vectors
        return SparseVector(np.zeros(0, np.int32), np.zeros(0, np.float32))
    indices, values = np.array(sparse.indices, dtype=np.int32), np.array(sparse.values, dtype=np.float32)
    order = np.argsort(indices)  # an engine may use its own order
    return SparseVector(indices[order], values[order])

"""Records: what goes into a store and comes out, validated before any engine sees it.

An engine trusts its caller: a sparse vector of unequal halves or a deeply nested payload leaves Qdrant Edge with a log
that it cannot read again. So everything is checked here, once, for every engine.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from twinvec.errors import InvalidRecordError
from twinvec.vectors import Float32, SparseBatch, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import field_values

_NAMESPACE = uuid.UUID("6c3f1f5e-9b53-5d0a-8f0e-6b6f0c7c2a11")
_MAX_DEPTH = 32
_MAX_ID_BYTES = 1024
_MAX_WEIGHT = 1e12  # products and sums of such numbers stay finite in float32
_UNIT = 1e-5  # rows as near to length 1 as this are kept bit for bit


@dataclass(frozen=True, eq=False)
class Record:
    """One stored record.

    Attributes:
        id: the caller's id.
        text: what was embedded.
        metadata: JSON object; what filters look at.
        provenance: JSON object of the ingestion: the document and the part of it that the text is, its hash.
        dense: float32 [dim], where asked for and kept.
        sparse: sparse row, where asked for and kept.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dense: Float32 | None = None
    sparse: SparseVector | None = None


@dataclass(frozen=True, eq=False)
class RecordBatch:
    """Records on their way into a store, in columns.

    Attributes:
        ids: n strings; of equal ones the last is kept.
        texts: n strings.
        dense: float32 [n, dim], where the store keeps dense vectors.
        sparse: n sparse rows, where the store keeps them.
        metadata: n JSON objects; None: all empty.
        provenance: n JSON objects; None: all empty.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    dense: Float32 | None = None
    sparse: SparseBatch | None = None
    metadata: Sequence[Mapping[str, Any]] | None = None
    provenance: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        for i, (id, text) in enumerate(zip(self.ids, self.texts, strict=True)):
            yield Record(
                id=id,
                text=text,
                metadata=self.metadata[i] if self.metadata is not None else {},
                provenance=self.provenance[i] if self.provenance is not None else {},
                dense=self.dense[i] if self.dense is not None else None,
                sparse=self.sparse[i] if self.sparse is not None else None,
            )

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordBatch:
        """Return records, with the vectors they carry, as a batch."""
        dense = [r.dense for r in records if r.dense is not None]
        sparse = [r.sparse for r in records if r.sparse is not None]
        for name, rows in (("dense", dense), ("sparse", sparse)):
            if rows and len(rows) < len(records):
                raise InvalidRecordError(
                    f"{len(records) - len(rows)} of {len(records)} records lack their {name} vector"
                )
        if len({np.shape(row) for row in dense}) > 1:
            raise InvalidRecordError("dense vectors of different dimensions")
        return cls(
            ids=[r.id for r in records],
            texts=[r.text for r in records],
            dense=np.stack(dense) if dense else None,
            sparse=_stacked(sparse, "sparse") if sparse else None,
            metadata=[r.metadata for r in records],
            provenance=[r.provenance for r in records],
        )


class Hit(NamedTuple):
    """One result of a query: higher scores are better."""

    id: str
    score: float


@dataclass(frozen=True, eq=False)
class DenseQuery:
    """Rank by cosine with this vector, float32 [dim]."""

    vector: Float32


@dataclass(frozen=True, eq=False)
class SparseQuery:
    """Rank records that share a key with this row by the sum over common keys of weight * weight."""

    vector: SparseVector


StoreQuery: TypeAlias = "DenseQuery | SparseQuery"


def stack_rows(rows: Sequence[SparseVector]) -> SparseBatch:
    """Return sparse rows as one batch."""
    return SparseBatch(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.concatenate([np.zeros(0, np.int32), *(row.indices for row in rows)]),
        np.concatenate([np.zeros(0, np.float32), *(row.values for row in rows)]),
    )


def point_id(id: str) -> str:
    """Return the engine's id of a record: uuid5 of the caller's."""
    return str(uuid.uuid5(_NAMESPACE, id))


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids as a list.

    Raises:
        InvalidRecordError: an id that is not a string of 1 to 1024 bytes.
    """
    checked = _column(ids, "ids")
    for i, id in enumerate(checked):
        _check_string(id, f"ids[{i}]")
        if not 0 < len(id.encode()) <= _MAX_ID_BYTES:
            raise InvalidRecordError(f"ids[{i}] must have 1 to {_MAX_ID_BYTES} bytes, not {len(id.encode())}")
    return checked


def check_batch(batch: RecordBatch, config: StoreConfig) -> RecordBatch:
    """Return a batch that no engine can choke on, dense rows of length 1; of equal ids the last is kept.

    Metadata and provenance are copied, as plain JSON types; vectors may be views into the caller's.

    Raises:
        InvalidRecordError: says which record, and what is wrong with it.
    """
    if not isinstance(batch, RecordBatch):
        raise InvalidRecordError(f"expected a RecordBatch, not {type(batch).__name__}; see RecordBatch.of")
    ids = check_ids(batch.ids)
    n = len(ids)
    texts = _column(batch.texts, "texts")
    metadata = [{}] * n if batch.metadata is None else _column(batch.metadata, "metadata")
    provenance = [{}] * n if batch.provenance is None else _column(batch.provenance, "provenance")
    for name, column in (("texts", texts), ("metadata", metadata), ("provenance", provenance)):
        if len(column) != n:
            raise InvalidRecordError(f"{n} ids but {len(column)} {name}")
    for i, id in enumerate(ids):
        _check_string(texts[i], f"record {id!r}: text")
        metadata[i] = _object(metadata[i], f"record {id!r}: metadata")
        provenance[i] = _object(provenance[i], f"record {id!r}: provenance")
        _check_fields(metadata[i], config, id)
    dense = _check_dense(batch.dense, config, ids)
    sparse = _check_sparse(batch.sparse, config, ids)
    checked = RecordBatch(ids, texts, dense, sparse, metadata, provenance)
    last = {id: i for i, id in enumerate(ids)}
    return checked if len(last) == n else _rows(checked, sorted(last.values()))


def check_query(query: StoreQuery, config: StoreConfig) -> StoreQuery:
    """Return a query that fits the store, a dense one of length 1.

    Raises:
        InvalidRecordError: it does not fit.
    """
    if isinstance(query, DenseQuery):
        if config.dim is None:
            raise InvalidRecordError("this store keeps no dense vectors: search with mode='sparse'")
        dense = _check_dense([query.vector], config, ["query"])
        assert dense is not None
        return DenseQuery(dense[0])
    if isinstance(query, SparseQuery):
        if not config.sparse:
            raise InvalidRecordError("this store keeps no sparse vectors: search with mode='dense'")
        sparse = _check_sparse(_stacked([query.vector], "query"), config, ["query"])
        assert sparse is not None
        return SparseQuery(sparse[0])
    raise InvalidRecordError(f"expected DenseQuery or SparseQuery, not {type(query).__name__}")


def _rows(batch: RecordBatch, rows: list[int]) -> RecordBatch:
    assert batch.metadata is not None
    assert batch.provenance is not None
    return RecordBatch(
        [batch.ids[i] for i in rows],
        [batch.texts[i] for i in rows],
        batch.dense[rows] if batch.dense is not None else None,
        batch.sparse[rows] if batch.sparse is not None else None,
        [batch.metadata[i] for i in rows],
        [batch.provenance[i] for i in rows],
    )


def _column(values: Any, name: str) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRecordError(f"{name} must be a list, not {values!r:.60}")
    return list(values)


def _stacked(rows: Sequence[SparseVector], where: str) -> SparseBatch:
    for row in rows:
        if not isinstance(row, SparseVector):
            raise InvalidRecordError(f"{where}: expected a SparseVector, not {type(row).__name__}")
    try:
        return stack_rows(rows)
    except (TypeError, ValueError) as error:
        raise InvalidRecordError(f"{where}: {error}") from None


def _check_string(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise InvalidRecordError(f"{where} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError(f"{where} is not valid Unicode (lone surrogate at {error.start})") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRecordError(f"{where} must be a dict, not {type(value).__name__}")
    plain: dict[str, Any] = _plain(value, where, _MAX_DEPTH)
    return plain


def _plain(value: Any, where: str, depth: int) -> Any:
    """Return a copy in plain JSON types: engines refuse subclasses and other mappings in ways of their own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_string(value, where)
        return str.__str__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRecordError(f"{where} is {value}, which JSON cannot hold")
        return float(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidRecordError(f"{where} is a whole number outside of 64 bits: keep it as a string")
        return int(value)
    if not isinstance(value, (Mapping, list, tuple)):
        raise InvalidRecordError(f"{where} is a {type(value).__name__}: only JSON types can be stored")
    if depth == 0:
        raise InvalidRecordError(f"{where:.200} is nested more than {_MAX_DEPTH} deep")
    if not isinstance(value, Mapping):
        return [_plain(inner, where, depth - 1) for inner in value]
    plain = {}
    for key, inner in value.items():
        _check_string(key, f"{where}: key {key!r:.60}")
        plain[str.__str__(key)] = _plain(inner, f"{where}[{key!r:.60}]", depth - 1)
    return plain


def _check_fields(metadata: Mapping[str, Any], config: StoreConfig, id: str) -> None:
    for name, kind in config.fields.items():
        for value in field_values(metadata, name):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits = {
                "keyword": isinstance(value, str),
                "bool": isinstance(value, bool),
                "integer": number and isinstance(value, int),
                "float": number,
            }[kind]
            if not fits:
                raise InvalidRecordError(
                    f"record {id!r}: metadata field {name} is declared as {kind}, but holds {value!r:.60}"
                )


def _check_dense(dense: Any, config: StoreConfig, ids: Sequence[str]) -> Float32 | None:
    if (dense is None) != (config.dim is None):
        raise InvalidRecordError("dense vectors are missing" if dense is None else "this store keeps no dense vectors")
    if dense is None:
        return None
    try:
        given = np.asarray(dense)
    except ValueError:  # rows of different lengths
        given = np.empty(0, object)
    if given.dtype.kind not in "fiu":
        raise InvalidRecordError(f"dense must be an array of numbers [{len(ids)}, {config.dim}], not of {given.dtype}")
    with np.errstate(over="ignore"):
        rows = np.asarray(given, dtype=np.float32)
    if rows.shape != (len(ids), config.dim):
        raise InvalidRecordError(f"dense has shape {list(rows.shape)}, the store needs [{len(ids)}, {config.dim}]")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    for i in np.flatnonzero(~np.isfinite(norms) | (norms == 0)).tolist():
        raise InvalidRecordError(f"{ids[i]!r}: its dense vector is zero, or holds NaN or infinity")
    off = np.abs(norms - 1) > _UNIT
    if off.any():
        rows = rows.copy()
        rows[off] = (rows[off] / norms[off, None]).astype(np.float32)
    return rows


def _check_sparse(sparse: SparseBatch | None, config: StoreConfig, ids: Sequence[str]) -> SparseBatch | None:
    if (sparse is None) == config.sparse:
        raise InvalidRecordError(
            "sparse vectors are missing" if config.sparse else "this store keeps no sparse vectors"
        )
    if sparse is None:
        return None
    if not isinstance(sparse, SparseBatch) or len(sparse) != len(ids):
        raise InvalidRecordError(f"sparse must be a SparseBatch of {len(ids)} rows")
    try:
        sparse = SparseBatch(sparse.indptr, sparse.indices, sparse.values)  # its arrays may have been written to
    except ValueError as error:
        raise InvalidRecordError(f"sparse: {error}") from None
    heavy = sparse.values > _MAX_WEIGHT
    if heavy.any():
        row = int(np.searchsorted(sparse.indptr, np.flatnonzero(heavy)[0], side="right")) - 1
        raise InvalidRecordError(f"{ids[row]!r}: a sparse weight is above {_MAX_WEIGHT:g}")
    return sparse

"""Records: what goes into a store and comes out of it, validated before any engine sees it.

An engine trusts its caller: a sparse vector with unequal halves or a deeply nested payload leaves Qdrant Edge with a
log that it cannot read again. Therefore everything is checked here, once, for all engines.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from twinvec.errors import InvalidRecordError
from twinvec.vectors import Float32, SparseBatch, SparseVector
from twinvec_stores.filters.fields import field_values
from twinvec_stores.filters.moments import moment
from twinvec_stores.metadata import check_text, plain_id, plain_metadata
from twinvec_stores.tokens import is_packed

if TYPE_CHECKING:
    from twinvec_stores.config import FieldType, StoreConfig

_NAMESPACE = uuid.UUID("6c3f1f5e-9b53-5d0a-8f0e-6b6f0c7c2a11")
_MAX_WEIGHT = 1e12  # products and sums of such numbers remain finite in float32
_UNIT = 1e-5  # rows this close to length 1 are stored bit for bit


@dataclass(frozen=True, eq=False)
class Record:
    """One stored record.

    Attributes:
        id: the caller's id.
        text: the embedded text.
        metadata: JSON object, used by filters.
        provenance: JSON object from the ingestion: the document, the part of it that is this text, and its hash.
        dense: float32 [dim], if requested and stored.
        sparse: sparse row, if requested and stored.
        tokens: vectors of its tokens in the form of ``pack_tokens``, if requested and stored.
        checksum: the result of ``checksum`` when it was written; only if it was read with its vectors.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dense: Float32 | None = None
    sparse: SparseVector | None = None
    tokens: bytes | None = None
    checksum: int | None = None


@dataclass(frozen=True, eq=False)
class RecordBatch:
    """Records on their way into a store, as columns.

    Attributes:
        ids: n strings; of equal ones the last wins.
        texts: n strings.
        dense: float32 [n, dim], if the store has dense vectors.
        sparse: n sparse rows, if the store has sparse vectors.
        metadata: n JSON objects; None: all empty.
        provenance: n JSON objects; None: all empty.
        tokens: n results of ``pack_tokens``, if the store has vectors of tokens.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    dense: Float32 | None = None
    sparse: SparseBatch | None = None
    metadata: Sequence[Mapping[str, Any]] | None = None
    provenance: Sequence[Mapping[str, Any]] | None = None
    tokens: Sequence[bytes] | None = None

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
                tokens=self.tokens[i] if self.tokens is not None else None,
            )

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordBatch:
        """Return records, with the vectors they carry, as a batch."""
        dense = [r.dense for r in records if r.dense is not None]
        sparse = [r.sparse for r in records if r.sparse is not None]
        tokens = [r.tokens for r in records if r.tokens is not None]
        for name, n in (("dense vector", len(dense)), ("sparse vector", len(sparse)), ("token vectors", len(tokens))):
            if 0 < n < len(records):
                raise InvalidRecordError(f"{len(records) - n} of {len(records)} records lack their {name}")
        if len({np.shape(row) for row in dense}) > 1:
            raise InvalidRecordError("dense vectors of different dimensions")
        return cls(
            ids=[r.id for r in records],
            texts=[r.text for r in records],
            dense=np.stack(dense) if dense else None,
            sparse=_stacked(sparse, "sparse") if sparse else None,
            metadata=[r.metadata for r in records],
            provenance=[r.provenance for r in records],
            tokens=tokens or None,
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
    """Rank records that share a key with this row by the dot product over common keys."""

    vector: SparseVector


StoreQuery: TypeAlias = "DenseQuery | SparseQuery"


def point_id(id: str) -> str:
    """Return the engine's id of a record: uuid5 of the caller's id."""
    return str(uuid.uuid5(_NAMESPACE, id))


def is_point_id(text: str) -> bool:
    """Return whether a string may be an engine's id."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def checksum(record: Record) -> int:
    """Return the CRC-32 of everything in a record, vectors included; any single flipped bit changes it."""
    content = json.dumps([record.id, record.text, record.metadata, record.provenance], sort_keys=True)
    found = zlib.crc32(content.encode())
    if record.dense is not None:
        found = zlib.crc32(record.dense.tobytes(), found)
    if record.sparse is not None:
        found = zlib.crc32(record.sparse.values.tobytes(), zlib.crc32(record.sparse.indices.tobytes(), found))
    return found if record.tokens is None else zlib.crc32(record.tokens, found)


def check_ids(ids: Sequence[Any]) -> list[str]:
    """Return the ids as a list of strings.

    Raises:
        InvalidRecordError: see ``plain_id``.
    """
    return [plain_id(id, f"ids[{i}]") for i, id in enumerate(_column(ids, "ids"))]


class Rows(NamedTuple):
    """Record contents other than vectors."""

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]


def check_rows(
    ids: Sequence[Any], texts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None, config: StoreConfig
) -> Rows:
    """Return the contents of records, other than vectors, in plain types; call it before paying for the vectors.

    Raises:
        InvalidRecordError: says which record is invalid, and why.
    """
    names = check_ids(ids)
    n = len(names)
    columns = {"texts": _column(texts, "texts"), "metadata": _objects(metadata, n, "metadata")}
    for name, column in columns.items():
        if len(column) != n:
            raise InvalidRecordError(f"{n} ids but {len(column)} {name}")
    for i, id in enumerate(names):
        try:
            columns["texts"][i] = check_text(columns["texts"][i], "text")
            columns["metadata"][i] = check_metadata(columns["metadata"][i], config)
        except InvalidRecordError as error:
            raise error.of(id) from None
    return Rows(names, columns["texts"], columns["metadata"])


def check_metadata(metadata: Any, config: StoreConfig) -> dict[str, Any]:
    """Return metadata in plain JSON types, with declared fields converted to their declared types.

    Raises:
        InvalidRecordError: see ``plain_metadata``.
    """
    plain = plain_metadata(metadata)
    for name, kind in config.fields.items():
        for value in field_values(plain, name):
            if not _fits(value, kind):
                raise InvalidRecordError(
                    f"metadata field {name} is declared as {kind}, but holds {value!r:.60}", field=f"metadata[{name!r}]"
                )
    return plain


def check_batch(batch: RecordBatch, config: StoreConfig) -> RecordBatch:
    """Return a batch that is safe for every engine, with dense rows of length 1; of equal ids the last wins.

    Metadata and provenance are copied as plain JSON types; vectors may be views into the caller's.

    Raises:
        InvalidRecordError: says which record is invalid, and why.
    """
    if not isinstance(batch, RecordBatch):
        raise InvalidRecordError(f"expected a RecordBatch, not {type(batch).__name__}; see RecordBatch.of")
    ids, texts, metadata = check_rows(batch.ids, batch.texts, batch.metadata, config)
    n = len(ids)
    provenance = _objects(batch.provenance, n, "provenance")
    if len(provenance) != n:
        raise InvalidRecordError(f"{n} ids but {len(provenance)} provenance")
    for i, id in enumerate(ids):
        try:
            provenance[i] = plain_metadata(provenance[i], "provenance")
        except InvalidRecordError as error:
            raise error.of(id) from None
    dense = _check_dense(batch.dense, config, ids)
    sparse = _check_sparse(batch.sparse, config, ids)
    tokens = _check_tokens(batch.tokens, config, ids)
    checked = RecordBatch(ids, texts, dense, sparse, metadata, provenance, tokens)
    last = {id: i for i, id in enumerate(ids)}
    return checked if len(last) == n else _rows(checked, sorted(last.values()))


def check_query(query: StoreQuery, config: StoreConfig) -> StoreQuery:
    """Return a query that fits the store; dense ones are normalised.

    Raises:
        InvalidRecordError: it does not fit.
    """
    if isinstance(query, DenseQuery):
        if config.dim is None:
            raise InvalidRecordError("this store has no dense vectors: search with mode='sparse'")
        dense = _check_dense([query.vector], config, ["query"])
        assert dense is not None
        return DenseQuery(dense[0])
    if isinstance(query, SparseQuery):
        if not config.sparse:
            raise InvalidRecordError("this store has no sparse vectors: search with mode='dense'")
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
        [batch.tokens[i] for i in rows] if batch.tokens is not None else None,
    )


def _column(values: Any, name: str) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRecordError(f"{name} must be a list, not {values!r:.60}")
    return list(values)


def _objects(column: Any, n: int, name: str) -> list[Any]:
    return [{}] * n if column is None else _column(column, name)


def _stacked(rows: Sequence[SparseVector], where: str) -> SparseBatch:
    for row in rows:
        if not isinstance(row, SparseVector):
            raise InvalidRecordError(f"{where}: expected a SparseVector, not {type(row).__name__}", field="sparse")
    try:
        stacked = SparseBatch.stack(rows)
        return SparseBatch(stacked.indptr, stacked.indices, stacked.values)  # stack trusts rows, these are a caller's
    except (TypeError, ValueError) as error:
        raise InvalidRecordError(f"{where}: {error}", field="sparse") from None


def _fits(value: Any, kind: FieldType) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "keyword": isinstance(value, str),
        "text": isinstance(value, str),
        "datetime": isinstance(value, str) and moment(value) is not None,
        "bool": isinstance(value, bool),
        "integer": number and isinstance(value, int),
        "float": number,
    }[kind]


def _check_dense(dense: Any, config: StoreConfig, ids: Sequence[str]) -> Float32 | None:
    if (dense is None) != (config.dim is None):
        raise InvalidRecordError("dense vectors are missing" if dense is None else "this store has no dense vectors")
    if dense is None:
        return None
    try:
        given = np.asarray(dense)
    except ValueError:  # rows of different lengths
        given = np.empty(0, object)
    if given.dtype.kind not in "fiu":
        raise InvalidRecordError(f"dense must be an array of numbers [{len(ids)}, {config.dim}], not {given.dtype}")
    with np.errstate(over="ignore"):
        rows = np.asarray(given, dtype=np.float32)
    if rows.shape != (len(ids), config.dim):
        raise InvalidRecordError(f"dense has shape {list(rows.shape)}, the store needs [{len(ids)}, {config.dim}]")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    for i in np.flatnonzero(~np.isfinite(norms) | (norms == 0)).tolist():
        raise InvalidRecordError("its dense vector is zero, or contains NaN or infinity", id=ids[i], field="dense")
    off = np.abs(norms - 1) > _UNIT
    if off.any():
        rows = rows.copy()
        rows[off] = (rows[off] / norms[off, None]).astype(np.float32)
    return rows


def _check_sparse(sparse: SparseBatch | None, config: StoreConfig, ids: Sequence[str]) -> SparseBatch | None:
    if (sparse is None) == config.sparse:
        raise InvalidRecordError("sparse vectors are missing" if config.sparse else "this store has no sparse vectors")
    if sparse is None:
        return None
    if not isinstance(sparse, SparseBatch) or len(sparse) != len(ids):
        raise InvalidRecordError(f"sparse must be a SparseBatch of {len(ids)} rows")
    try:
        sparse = SparseBatch(sparse.indptr, sparse.indices, sparse.values)  # its arrays may have been modified
    except ValueError as error:
        raise InvalidRecordError(f"sparse: {error}") from None
    heavy = sparse.values > _MAX_WEIGHT
    if heavy.any():
        row = int(np.searchsorted(sparse.indptr, np.flatnonzero(heavy)[0], side="right")) - 1
        raise InvalidRecordError(f"a sparse weight is above {_MAX_WEIGHT:g}", id=ids[row], field="sparse")
    return sparse


def _check_tokens(tokens: Any, config: StoreConfig, ids: Sequence[str]) -> list[bytes] | None:
    if (tokens is None) != (config.token_pool is None):
        none = "this store has no vectors of tokens"
        raise InvalidRecordError("the vectors of tokens are missing" if tokens is None else none)
    if tokens is None:
        return None
    column = _column(tokens, "tokens")
    if len(column) != len(ids):
        raise InvalidRecordError(f"{len(ids)} ids but {len(column)} tokens")
    for id, data in zip(ids, column, strict=True):
        if not is_packed(data):
            raise InvalidRecordError("its vectors of tokens are not a result of pack_tokens", id=id, field="tokens")
    return column

"""Records as rows of PostgreSQL, and back."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pgvector import Vector
from psycopg.types.multirange import Multirange
from psycopg.types.numeric import Int8
from psycopg.types.range import Range

from twinvec.errors import StoreEngineError
from twinvec.vectors import SparseVector
from twinvec_stores.config import FieldType, StoreConfig
from twinvec_stores.filters.fields import field_values
from twinvec_stores.filters.matching import words
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import comparable
from twinvec_stores.records import Record, RecordBatch, checksum, point_id

_INTEGER, _REAL = 23, 700  # PostgreSQL's numbers for these types
_EXPONENT = 1e16  # from here on Python writes a float with an exponent, and PostgreSQL as an integer
_UNSTORABLE, _ESCAPES = re.compile("[\x00\uffff]"), re.compile("\uffff(.)", re.DOTALL)
_JSONB_START = b"\x01"  # the version of its binary form
_COPY_START, _COPY_END = b"PGCOPY\n\xff\r\n\x00" + bytes(8), struct.pack(">h", -1)
_TERM = np.dtype(  # a row of ``terms`` as COPY reads it: the number of values, then the size of each and the value
    [
        *(("values", ">i2"), ("record_size", ">i4"), ("record", ">i8")),
        *(("key_size", ">i4"), ("key", ">i4"), ("weight_size", ">i4"), ("weight", ">f4")),
    ]
)


def escaped(text: str) -> str:
    """Return a string without NUL, which PostgreSQL cannot store; different strings remain different."""
    return _UNSTORABLE.sub(lambda match: "\uffff\ufffe" if match[0] == "\x00" else "\uffff\uffff", text)


def unescaped(text: str) -> str:
    """Return what ``escaped`` was given."""
    return _ESCAPES.sub(lambda match: "\x00" if match[1] == "\ufffe" else "\uffff", text)


class Rows:
    """A batch on its way into the tables, in the order of its points so that writers do not wait in circles."""

    def __init__(self, batch: RecordBatch, config: StoreConfig) -> None:
        """Encode the batch, which takes a while, except for the numbers of its rows."""
        pairs = sorted(((point_id(record.id), record) for record in batch), key=lambda pair: pair[0])
        self._rows = [_encoded(point, record, config) for point, record in pairs]
        self._sparse = [record.sparse for _, record in pairs if record.sparse is not None]

    def __len__(self) -> int:
        return len(self._rows)

    def records(self, numbers: Sequence[int]) -> Iterator[list[Any]]:
        """Yield the rows of ``records``, with these numbers."""
        for (point, *rest), number in zip(self._rows, numbers, strict=True):
            yield [point, Int8(number), *rest]

    def terms(self, numbers: Sequence[int]) -> bytes:
        """Return the rows of ``terms`` in the binary form of COPY, by keys, which an index takes fastest."""
        keys = np.concatenate([row.indices for row in self._sparse])
        order = np.argsort(keys, kind="stable")
        made = np.empty(len(keys), _TERM)
        made["values"], made["record_size"], made["key_size"], made["weight_size"] = 3, 8, 4, 4
        made["record"] = np.repeat(numbers, [len(row) for row in self._sparse])[order]
        made["key"], made["weight"] = keys[order], np.concatenate([row.values for row in self._sparse])[order]
        return _COPY_START + made.tobytes() + _COPY_END


def to_record(row: Sequence[Any], config: StoreConfig, *, with_vectors: bool) -> Record:
    """Return a row that was read as a record.

    Args:
        row: id, text, metadata, provenance, exact; with vectors also checksum, keys and weights, dense, tokens.
        config: the store's configuration.
        with_vectors: whether it has the vectors.

    Raises:
        StoreEngineError: it is not as it was written.
    """
    id, text, metadata, provenance, exact, *vectors = row
    try:
        found = {"checksum": vectors.pop(0)} if with_vectors else {}
        if with_vectors and config.sparse:
            keys, weights = np.array(vectors.pop(0), np.int32), np.array(vectors.pop(0), np.float32)
            found["sparse"] = SparseVector(keys, weights)
        if with_vectors and config.dim is not None:
            found["dense"] = Vector.from_binary(vectors.pop(0)).to_numpy().copy()
        if with_vectors and config.token_pool is not None:
            found["tokens"] = bytes(vectors.pop(0))
        return Record(unescaped(id), unescaped(text), metadata if exact is None else exact, provenance, **found)
    except (TypeError, ValueError) as error:
        raise StoreEngineError(f"the record {id!r:.60} is damaged ({error!r}): ingest it again") from None


def _encoded(point: str, record: Record, config: StoreConfig) -> list[Any]:
    """Return a row of ``records`` without its number."""
    kept = _is_kept(record.metadata)
    row = [
        UUID(point),
        escaped(record.id),
        escaped(record.text),
        _JSONB_START + _json(record.metadata if kept else _stored(record.metadata)),
        _json(record.provenance),
        None if kept else _json(record.metadata),
        Int8(checksum(record)),
    ]
    if record.sparse is not None:
        row += [_array(record.sparse.indices, _INTEGER), _array(record.sparse.values, _REAL)]
    if record.dense is not None:
        row.append(Vector(record.dense).to_binary())
    if record.tokens is not None:
        row.append(record.tokens)
    return row + [_field(record.metadata, name, kind) for name, kind in config.fields.items()]


def decimal(number: float) -> Decimal:
    """Return a comparable number as PostgreSQL's numeric compares it."""
    return Decimal(str(number))


def _field(metadata: Mapping[str, Any], name: str, kind: FieldType) -> Any:
    """Return what a declared field's column holds: the elements of a list; None if there is nothing."""
    values = field_values(metadata, name)
    if not values or kind == "bool":
        return values or None
    if kind == "keyword":
        return [escaped(value) for value in values]
    if kind == "text":
        return sorted(set().union(*(words(value) for value in values))) or None
    numbers = [moment(value) if kind == "datetime" else comparable(value) for value in values]
    return Multirange([Range(decimal(number), decimal(number), "[]") for number in numbers if number is not None])


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _array(values: NDArray[Any], kind: int) -> bytes:
    """Return an array in PostgreSQL's binary form."""
    if not len(values):
        return struct.pack(">iii", 0, 0, kind)
    cells = np.empty(len(values), [("size", ">i4"), ("value", values.dtype.newbyteorder(">"))])
    cells["size"], cells["value"] = values.itemsize, values
    return struct.pack(">iiiii", 1, 0, kind, len(values), 1) + cells.tobytes()


def _is_kept(value: Any) -> bool:
    """Return whether PostgreSQL returns every number and string of a value as it was."""
    if isinstance(value, float):
        return abs(value) < _EXPONENT and comparable(value) == value and str(value) != "-0.0"
    if isinstance(value, str):
        return _UNSTORABLE.search(value) is None
    if isinstance(value, Mapping):
        return all(_is_kept(key) and _is_kept(inner) for key, inner in value.items())
    return not isinstance(value, (list, tuple)) or all(map(_is_kept, value))


def _stored(value: Any) -> Any:
    """Return a value as filters compare it: floats with 15 digits, strings that can be stored."""
    if isinstance(value, float):
        return comparable(value)
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {escaped(key): _stored(inner) for key, inner in value.items()}
    return [_stored(inner) for inner in value] if isinstance(value, (list, tuple)) else value

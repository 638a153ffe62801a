"""Records as rows of a Milvus collection, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from twinvec.errors import InvalidRecordError, StoreEngineError
from twinvec.vectors import SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.milvus.expressions import number_columns
from twinvec_stores.engines.milvus.facts import facts_of
from twinvec_stores.filters.fields import field_values
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import comparable
from twinvec_stores.records import Record, RecordBatch, checksum, point_id

DENSE, SPARSE = "dense", "sparse"
MAX_TEXT, MAX_JSON, MAX_ELEMENTS = 65_535, 65_536, 4_096  # a server's limits for a string, for JSON, for an array
_EMPTY = {2**32 - 2: 1.0}  # servers refuse rows without weights; no model has this key, so no query finds it


def to_rows(batch: RecordBatch, config: StoreConfig) -> list[dict[str, Any]]:
    """Return a batch as rows.

    Raises:
        InvalidRecordError: a record is larger than a server takes.
    """
    return [_row(record, config) for record in batch]


def content(config: StoreConfig, *, with_vectors: bool) -> list[str]:
    """Return the columns that ``to_record`` reads."""
    columns = ["point", "id", "text", "metadata", "provenance"]
    if with_vectors:
        columns += ["checksum", *([DENSE] if config.dim is not None else []), *([SPARSE] if config.sparse else [])]
    return columns


def to_record(row: Mapping[str, Any], config: StoreConfig) -> Record:
    """Return a row as a record, with the vectors that came with it.

    Raises:
        StoreEngineError: it is not one of our records, so it was damaged.
    """
    try:
        return Record(
            id=row["id"],
            text=row["text"],
            metadata=row["metadata"],
            provenance=row["provenance"],
            dense=np.array(row[DENSE], dtype=np.float32) if DENSE in row else None,
            sparse=_sparse(row[SPARSE]) if SPARSE in row else None,
            checksum=row.get("checksum"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreEngineError(f"the record {row.get('id')!r:.60} is damaged ({error!r}): ingest it again") from None


def _row(record: Record, config: StoreConfig) -> dict[str, Any]:
    _check_size(record, "text", len(record.text.encode()), MAX_TEXT, "bytes")
    for name, value in (("metadata", record.metadata), ("provenance", record.provenance)):
        written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        _check_size(record, name, len(written.encode()), MAX_JSON, "bytes of JSON")
    facts = facts_of(record.metadata, config)
    _check_size(record, "metadata", len(facts), MAX_ELEMENTS, "values")
    row: dict[str, Any] = {
        "point": point_id(record.id),
        "id": record.id,
        "text": record.text,
        "metadata": record.metadata,
        "provenance": record.provenance,
        "checksum": checksum(record),
        "facts": facts,
    }
    for field, (low, high) in number_columns(config).items():
        numbers = [_number(value, config.fields[field]) for value in field_values(record.metadata, field)]
        row |= {low: min(numbers, default=None), high: max(numbers, default=None)}
    if record.dense is not None:
        row[DENSE] = record.dense
    if record.sparse is not None:
        row[SPARSE] = record.sparse.to_dict() or _EMPTY
        if config.idf:
            _check_size(record, "sparse", len(record.sparse), MAX_ELEMENTS, "keys")
            row["keys"] = record.sparse.indices.tolist()
    return row


def _check_size(record: Record, field: str, size: int, most: int, unit: str) -> None:
    if size > most:
        raise InvalidRecordError(
            f"its {field} has {size} {unit}, Milvus takes {most}: split the text, or leave something out",
            id=record.id,
            field=field,
        )


def _number(value: Any, kind: str) -> float:
    if kind == "datetime":
        at = moment(value)
        assert at is not None
        return at
    return float(comparable(value)) if kind == "float" else int(value)


def _sparse(weights: Mapping[int, float]) -> SparseVector:
    keys = sorted(weights.keys() - _EMPTY.keys())
    return SparseVector(np.array(keys, np.int32), np.array([weights[key] for key in keys], np.float32))

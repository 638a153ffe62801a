"""The rules for metadata and for ids: values without a JSON form are converted by their meaning, or rejected.

They apply wherever data enters a store: HybridIndex, ingest, the command line, LangChain's and LlamaIndex's classes.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

from twinvec.errors import InvalidRecordError
from twinvec.text.unicode import lone_surrogate

_MAX_DEPTH = 32
MAX_ID_BYTES = 1024


def plain_metadata(metadata: Any, name: str = "metadata") -> dict[str, Any]:
    """Return a copy of metadata in plain JSON types.

    numpy scalars and arrays become Python values; datetime, date, time, UUID, Path, Decimal and Enum become strings
    (ISO 8601, offsets are kept; of an Enum the value if it is a string, otherwise the name; an IntEnum is a number);
    NaN, NaT and NA become null; sets become sorted lists.

    Args:
        metadata: a dict.
        name: its name in errors.

    Raises:
        InvalidRecordError: a value has no such form; ``field`` says where.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidRecordError(f"{name} must be a dict, not {type(metadata).__name__}", field=name)
    plain: dict[str, Any] = _plain(metadata, name, _MAX_DEPTH)
    return plain


def plain_id(id: Any, name: str = "id", most: int = MAX_ID_BYTES) -> str:
    """Return an id as a string of 1 to ``most`` bytes; integers and UUIDs are converted.

    Raises:
        InvalidRecordError: the id is invalid.
    """
    if isinstance(id, (int, np.integer, uuid.UUID)) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str):
        raise InvalidRecordError(f"{name} must be a string, an integer or a UUID, not {type(id).__name__}", field=name)
    text = check_text(id, name)
    if not 0 < len(text.encode()) <= most:
        raise InvalidRecordError(f"{name} must have 1 to {most} bytes, not {len(text.encode())}", field=name)
    return text


def check_text(value: Any, name: str) -> str:
    """Return a string after checking that it is valid Unicode.

    Raises:
        InvalidRecordError: it is not.
    """
    if not isinstance(value, str):
        raise InvalidRecordError(f"{name} must be a string, not {type(value).__name__}", field=name)
    if reason := lone_surrogate(value):
        raise InvalidRecordError(f"{name} has {reason}, which is not text", field=name)
    return str.__str__(value)


def _plain(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, Enum) and not isinstance(value, int):
        value = value.value if isinstance(value.value, str) else value.name
    elif isinstance(value, np.ndarray) and not value.ndim and value is not np.ma.masked:
        value = value[()]
    if isinstance(value, np.generic):
        value = _python(value)
    if value is None or isinstance(value, bool):
        return value
    if _is_missing(value):
        return None
    if isinstance(value, (int, float)):
        return _number(value, name)
    text = _text(value)
    return _container(value, name, depth) if text is None else check_text(text, name)


def _number(value: float, name: str) -> float:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidRecordError(f"{name} is an integer outside 64 bits: keep it as a string", field=name)
        return int(value)
    if math.isinf(value):
        raise InvalidRecordError(f"{name} is {value}, which JSON cannot hold", field=name)
    return float(value)


def _text(value: Any) -> str | None:
    """Return the string form of a value that has one."""
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    return str(value) if isinstance(value, (str, uuid.UUID, PurePath, Decimal)) else None


def _container(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, np.ndarray):
        value = list(value)
    is_set = isinstance(value, (set, frozenset))
    if not is_set and not isinstance(value, (Mapping, list, tuple)):
        raise InvalidRecordError(
            f"{name} has the type {type(value).__name__}, which has no form in JSON: leave it out, or convert it",
            field=name,
        )
    if depth == 0:
        raise InvalidRecordError(f"{name:.200} is nested more than {_MAX_DEPTH} deep", field=name)
    if not isinstance(value, Mapping):
        items = [_plain(inner, f"{name}[{i}]", depth - 1) for i, inner in enumerate(value)]
        return sorted(items, key=_order) if is_set else items
    return {
        check_text(key, f"{name}: key {key!r:.60}"): _plain(inner, f"{name}[{key!r:.60}]", depth - 1)
        for key, inner in value.items()
    }


def _order(item: Any) -> tuple[str, Any]:
    """Return what sorts the items of sets, of which those of different types cannot be compared."""
    return type(item).__name__, item if isinstance(item, (int, float, str)) else repr(item)


def _python(value: np.generic) -> Any:
    if isinstance(value, np.datetime64) and not np.isnat(value):
        precise = value.astype("datetime64[us]")
        # values within datetime's range are written as datetimes; nanoseconds and distant years as numpy writes them
        return value.item() if not isinstance(value.item(), int) else precise.item() if precise == value else str(value)
    return value.item()  # None for NaT


def _is_missing(value: Any) -> bool:
    """Return whether this is NaN, NA, or pandas' NaT (a datetime that is not equal to itself)."""
    if isinstance(value, Decimal):
        return value.is_nan()  # a signalling one cannot even be compared
    if isinstance(value, (float, datetime.date)):
        return bool(value != value)  # noqa: PLR0124
    return value is np.ma.masked or type(value).__name__ == "NAType"

"""Facts: what metadata says, as short strings in one indexed array.

Milvus' expressions compare neither lists nor paths as our filters do: an integer is no float to them, and a key with a
dot cannot be written. Therefore a record carries a digest of each (path, value) that a filter may ask for, and a
filter looks digests up: every field is indexed, declared or not, and no string of a user is part of an expression.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import Scalar
from twinvec_stores.filters.fields import field_values, readings
from twinvec_stores.filters.matching import words
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import comparable

FACT_LENGTH = 24  # characters, of 96 bits
_Path: TypeAlias = "tuple[tuple[str, bool], ...]"  # keys, and whether the next one is in the objects of a list


def facts_of(metadata: Mapping[str, Any], config: StoreConfig) -> list[str]:
    """Return the facts of a record."""
    found: set[str] = set()
    for path, value in _reached(metadata, ()):
        if value is not None and value != []:
            found.add(_fact(path, "exists"))
        for element in value if isinstance(value, list) else [value]:
            found.update(_fact(path, *meaning) for meaning in _meanings(element))
    for field, kind in config.fields.items():
        if kind == "text":
            found.update(*(word_facts(field, value) for value in field_values(metadata, field)))
    return sorted(found)


def value_facts(field: str, values: Iterable[Scalar]) -> list[str]:
    """Return facts of which a record has one if the field has one of the values."""
    meanings = [next(_meanings(value)) for value in values]
    return [_fact(path, *meaning) for path in _paths(field) for meaning in meanings]


def existence_facts(field: str) -> list[str]:
    """Return facts of which a record has one if the field exists."""
    return [_fact(path, "exists") for path in _paths(field)]


def word_facts(field: str, text: str) -> list[str]:
    """Return facts all of which a record has if the words are in a declared field of text."""
    return [_fact(field, "word", word) for word in sorted(words(text))]


def _paths(field: str) -> list[_Path]:
    return [tuple((part.key, part.in_list) for part in parts) for parts in readings(field)]


def _reached(value: Mapping[str, Any], start: _Path) -> Iterator[tuple[_Path, Any]]:
    for key, inner in value.items():
        yield (*start, (key, False)), inner
        if isinstance(inner, Mapping):
            yield from _reached(inner, (*start, (key, False)))
        elif isinstance(inner, list):
            for element in inner:
                if isinstance(element, Mapping):
                    yield from _reached(element, (*start, (key, True)))


def _meanings(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value is equal to: a string is also the moment that it may write down."""
    if isinstance(value, bool):
        yield "bool", value
    elif isinstance(value, (int, float)):
        number = comparable(value)
        yield "number", int(number) if number == int(number) else number
    elif isinstance(value, datetime.date):
        yield "moment", moment(value)
    elif isinstance(value, str):
        yield "string", value
        if (at := moment(value)) is not None:
            yield "moment", at


def _fact(*content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=FACT_LENGTH // 2).hexdigest()

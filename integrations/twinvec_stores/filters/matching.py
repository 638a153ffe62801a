"""What a filter means on a record: the behaviour that every engine must have."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

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
from twinvec_stores.filters.fields import field_values, reached
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import Interval, comparable

_WORD = re.compile(r"\w+")
_OnValue: TypeAlias = "Eq | In | Range | Contains | StartsWith"


def matches(condition: Filter, id: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a record matches."""
    if isinstance(condition, (And, Or)):
        each = (matches(f, id, metadata) for f in condition.filters)
        return all(each) if isinstance(condition, And) else any(each)
    if isinstance(condition, Not):
        return not matches(condition.filter, id, metadata)
    if isinstance(condition, Ne):
        return not matches(Eq(condition.field, condition.value), id, metadata)
    return id in condition.ids if isinstance(condition, HasId) else _holds(condition, metadata)


def _holds(condition: _OnValue | Exists | HasWords, metadata: Mapping[str, Any]) -> bool:
    if isinstance(condition, Exists):
        return any(value is not None and value != [] for value in reached(metadata, condition.field))
    values = field_values(metadata, condition.field)
    if isinstance(condition, HasWords):
        return words(condition.words) <= set().union(*(words(v) for v in values if isinstance(v, str)))
    return any(_fits(value, condition) for value in values)


def words(text: str) -> set[str]:
    """Return the words of a text, in the form in which they are compared."""
    return set(_WORD.findall(text.casefold()))


def _fits(value: Any, condition: _OnValue) -> bool:
    if isinstance(condition, Range):
        return _within(value, condition)
    if isinstance(condition, (Contains, StartsWith)):
        return isinstance(value, str) and _has_part(value, condition)
    wanted = condition.values if isinstance(condition, In) else (condition.value,)
    return any(_equal(value, w) for w in wanted)


def _has_part(value: str, condition: Contains | StartsWith) -> bool:
    part = condition.text
    if not condition.case_sensitive:
        value, part = value.casefold(), part.casefold()
    return part in value if isinstance(condition, Contains) else value.startswith(part)


def _equal(value: Any, wanted: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, datetime.date):
        return moment(value) is not None and moment(value) == moment(wanted)
    if isinstance(wanted, str) or not isinstance(value, (int, float)):
        return isinstance(value, str) and value == wanted
    return comparable(value) == comparable(wanted)


def _within(value: Any, condition: Range) -> bool:
    if condition.of_moments:
        number: float | None = moment(value)
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        number = comparable(value) if is_number else None
    return number is not None and number in Interval.of(condition.numbers())

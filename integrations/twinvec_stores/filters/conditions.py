"""Filters over metadata: one neutral form for every engine, and what each means on a JSON value.

A field that holds a list matches where any of its elements does. Numbers are compared as numbers (1 == 1.0), floats at
15 significant digits, and a bool is no number. A missing field matches nothing but ``Ne`` and ``Not``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from twinvec.errors import FilterError
from twinvec.text.unicode import lone_surrogate

Scalar: TypeAlias = "str | int | float | bool"
_SEGMENT = re.compile(r'"([^"\\]*)"|([^."\[\]\\]+)')
_MAX_FLOAT = 1.79769313486231e308  # the largest of 15 digits
_MAX_DEPTH = 32  # Qdrant Edge writes a deeper filter into its log, but cannot read it again


@dataclass(frozen=True)
class Eq:
    """The field equals the value."""

    field: str
    value: Scalar

    def __post_init__(self) -> None:
        parse_field(self.field)
        check_scalar(self.value, self.field)


@dataclass(frozen=True)
class Ne:
    """The field does not equal the value, or is missing."""

    field: str
    value: Scalar

    def __post_init__(self) -> None:
        parse_field(self.field)
        check_scalar(self.value, self.field)


@dataclass(frozen=True)
class In:
    """The field equals one of the values; no values match nothing."""

    field: str
    values: tuple[Scalar, ...]

    def __init__(self, field: str, values: Iterable[Scalar]) -> None:
        parse_field(field)
        if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
            raise FilterError(f"In({field!r}, ...) needs a list of values, not {values!r:.60}")
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "values", tuple(check_scalar(v, field) for v in values))


@dataclass(frozen=True)
class Range:
    """The field is a number within all given bounds."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def __post_init__(self) -> None:
        parse_field(self.field)
        if not self.bounds():
            raise FilterError(f"Range({self.field!r}) needs at least one of gt, gte, lt, lte")
        for name, bound in self.bounds().items():
            if not _is_finite(bound):
                raise FilterError(
                    f"Range({self.field!r}, {name}={bound!r:.60}): a bound must be a finite number; keep dates as "
                    "numbers, for example as seconds since 1970"
                )

    def bounds(self) -> dict[str, float]:
        """Return the bounds that were given, by name."""
        named = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in named.items() if bound is not None}


@dataclass(frozen=True)
class Exists:
    """The field is there, and is neither null nor an empty list."""

    field: str

    def __post_init__(self) -> None:
        parse_field(self.field)


@dataclass(frozen=True)
class HasId:
    """The record's id is one of these."""

    ids: tuple[str, ...]

    def __init__(self, ids: Iterable[str]) -> None:
        if isinstance(ids, (str, Mapping)) or not isinstance(ids, Iterable):
            raise FilterError(f"HasId needs a list of ids, not {ids!r:.60}")
        object.__setattr__(self, "ids", tuple(ids))
        for id in self.ids:
            if not isinstance(id, str) or lone_surrogate(id):
                raise FilterError(f"HasId: {id!r:.60} is not an id")


@dataclass(frozen=True)
class And:
    """All of the filters match; none given: everything matches."""

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        object.__setattr__(self, "filters", tuple(check_filter(f) for f in filters))


@dataclass(frozen=True)
class Or:
    """At least one of the filters matches; none given: nothing matches."""

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        object.__setattr__(self, "filters", tuple(check_filter(f) for f in filters))


@dataclass(frozen=True)
class Not:
    """The filter does not match."""

    filter: Filter

    def __post_init__(self) -> None:
        check_filter(self.filter)


Filter: TypeAlias = "Eq | Ne | In | Range | Exists | HasId | And | Or | Not"


def parse_field(field: str) -> tuple[str, ...]:
    """Return the keys a field leads through: ``a.b`` is ("a", "b"), ``"a.b"`` in double quotes is one key.

    Raises:
        FilterError: not a field.
    """
    if isinstance(field, str) and not lone_surrogate(field):
        keys, at = [], 0
        while match := _SEGMENT.match(field, at):
            keys.append(match[1] if match[1] is not None else match[2])
            at = match.end()
            if at == len(field):
                return tuple(keys)
            if field[at] != ".":
                break
            at += 1
    raise FilterError(f'{field!r} is not a field: write key, outer.inner, or "a key" in double quotes')


def check_scalar(value: Any, field: str) -> Scalar:
    """Return a value that can be compared with."""
    if isinstance(value, bool) or (isinstance(value, str) and not lone_surrogate(value)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    hint = "; use Exists, or Not(Exists(...))" if value is None else ""
    raise FilterError(f"{field}: cannot compare with {value!r:.60} ({type(value).__name__}){hint}")


def check_filter(value: Any) -> Filter:
    """Return the value if it is a filter.

    Raises:
        FilterError: it is not, or it is nested too deep.
    """
    if not isinstance(value, (Eq, Ne, In, Range, Exists, HasId, And, Or, Not)):
        raise FilterError(f"expected a filter of twinvec_stores.filters.conditions, not {type(value).__name__}")
    if _depth(value) > _MAX_DEPTH:
        raise FilterError(f"a filter is nested more than {_MAX_DEPTH} deep")
    return value


def matches(condition: Filter, id: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a record matches: the meaning that every engine has to give."""
    if isinstance(condition, (And, Or)):
        each = (matches(f, id, metadata) for f in condition.filters)
        return all(each) if isinstance(condition, And) else any(each)
    if isinstance(condition, Not):
        return not matches(condition.filter, id, metadata)
    if isinstance(condition, HasId):
        return id in condition.ids
    value = _value(metadata, condition.field)
    if isinstance(condition, Exists):
        return value is not None and value != []
    values = value if isinstance(value, list) else [value]
    found = any(_fits(v, condition) for v in values)
    return not found if isinstance(condition, Ne) else found


def field_values(metadata: Mapping[str, Any], field: str) -> list[Any]:
    """Return the values that a field has: the elements of a list, nothing where it is missing or null."""
    value = _value(metadata, field)
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def _depth(filter: Filter) -> int:
    inner = filter.filters if isinstance(filter, (And, Or)) else (filter.filter,) if isinstance(filter, Not) else ()
    return 1 + max(map(_depth, inner), default=0)


def _is_finite(bound: Any) -> bool:
    try:
        return isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
    except OverflowError:  # a whole number beyond float64
        return False


def _value(metadata: Mapping[str, Any], field: str) -> Any:
    value: Any = metadata
    for key in parse_field(field):
        value = value.get(key) if isinstance(value, Mapping) else None
    return list(value) if isinstance(value, tuple) else value


def _fits(value: Any, condition: Eq | Ne | In | Range) -> bool:
    if isinstance(condition, Range):
        return _within(value, condition)
    wanted = condition.values if isinstance(condition, In) else (condition.value,)
    return any(_equal(value, w) for w in wanted)


def _equal(value: Any, wanted: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, str) or not isinstance(value, (int, float)):
        return isinstance(value, str) and value == wanted
    if is_wide(wanted):
        return isinstance(value, int) and value == wanted
    return comparable(value) == comparable(wanted)


def is_wide(value: Scalar) -> bool:
    """Return whether this is a whole number that float64, in which engines compare numbers, cannot tell apart."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53


def _within(value: Any, bounds: Range) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    number = comparable(value)
    return (
        (bounds.gt is None or number > comparable(bounds.gt))
        and (bounds.gte is None or number >= comparable(bounds.gte))
        and (bounds.lt is None or number < comparable(bounds.lt))
        and (bounds.lte is None or number <= comparable(bounds.lte))
    )


def comparable(number: float) -> float:
    """Return what a number is compared as: engines keep 15 significant digits of a float for certain."""
    rounded = float(f"{number:.15g}") if isinstance(number, float) else float(number)
    return max(-_MAX_FLOAT, min(rounded, _MAX_FLOAT))  # the largest floats would be rounded to infinity

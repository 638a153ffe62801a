"""Filters over metadata: one neutral form for every engine, and the meaning of each on a JSON value.

A field that contains a list matches if any of its elements does; see ``fields`` for the syntax. Numbers are compared as
numbers (1 == 1.0), integers exactly, floats to 15 significant digits; a bool is not a number. A datetime or date as a
value stands for that moment, however the field writes it. A missing field matches nothing but ``Ne`` and ``Not``.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from twinvec.errors import FilterError
from twinvec.text.unicode import lone_surrogate
from twinvec_stores.filters.fields import parse_field
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import comparable

Scalar: TypeAlias = "str | int | float | bool | datetime.date"
Bound: TypeAlias = "float | str | datetime.date"
_MAX_DEPTH = 32  # Qdrant Edge writes deeper filters into its log, but cannot read them back


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
            raise FilterError(f"In({field!r}, ...) needs a list of values, not {values!r:.60}", field=field)
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "values", tuple(check_scalar(v, field) for v in values))


@dataclass(frozen=True)
class Range:
    """The field is a number, or a date and time, within all given bounds.

    Bounds are numbers; or datetimes, dates and ISO 8601 strings, in which case strings in the field are compared as
    moments in time. Offsets are honoured; without one, UTC is assumed. Declare the field as "datetime" for ranges that
    do not read every record.
    """

    field: str
    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None

    def __post_init__(self) -> None:
        parse_field(self.field)
        if not self.bounds():
            raise FilterError(f"Range({self.field!r}) needs at least one of gt, gte, lt, lte", field=self.field)
        kinds = set()
        for name, bound in self.bounds().items():
            kinds.add(_is_finite(bound))
            if not _is_finite(bound) and moment(bound) is None:
                raise FilterError(
                    f"Range({self.field!r}, {name}={bound!r:.60}): a bound must be a finite number, a datetime or an "
                    "ISO 8601 string of microseconds at most",
                    field=self.field,
                )
        if len(kinds) > 1:
            raise FilterError(f"Range({self.field!r}): its bounds must all be numbers, or all dates", field=self.field)

    @property
    def of_moments(self) -> bool:
        """Return whether dates and times are compared."""
        return not _is_finite(next(iter(self.bounds().values())))

    def bounds(self) -> dict[str, Bound]:
        """Return the given bounds by name."""
        named = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in named.items() if bound is not None}

    def numbers(self) -> dict[str, float]:
        """Return the bounds as comparable numbers; moments are in microseconds since 1970."""
        given = {name: moment(bound) if self.of_moments else bound for name, bound in self.bounds().items()}
        return {name: comparable(bound) for name, bound in given.items() if isinstance(bound, (int, float))}


@dataclass(frozen=True)
class Contains:
    """The field is a string that contains this text."""

    field: str
    text: str
    case_sensitive: bool = True

    def __post_init__(self) -> None:
        _check_text(self)


@dataclass(frozen=True)
class StartsWith:
    """The field is a string that starts with this text."""

    field: str
    text: str
    case_sensitive: bool = True

    def __post_init__(self) -> None:
        _check_text(self)


@dataclass(frozen=True)
class HasWords:
    """The strings of the field contain all of these words, in any order and case; a word is whatever ``\\w+`` matches.

    Declare the field as "text" for searches that do not read every record.
    """

    field: str
    words: str

    def __post_init__(self) -> None:
        parse_field(self.field)
        if not isinstance(self.words, str) or not re.search(r"\w", self.words):
            raise FilterError(f"HasWords({self.field!r}, ...) needs words, not {self.words!r:.60}", field=self.field)


@dataclass(frozen=True)
class Exists:
    """The field exists, and is neither null nor an empty list."""

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
    """All of the filters match; with none given, everything matches."""

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        object.__setattr__(self, "filters", tuple(check_filter(f) for f in filters))


@dataclass(frozen=True)
class Or:
    """At least one of the filters matches; with none given, nothing matches."""

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        object.__setattr__(self, "filters", tuple(check_filter(f) for f in filters))


@dataclass(frozen=True)
class Not:
    """The filter does not match."""

    filter: Filter

    def __post_init__(self) -> None:
        check_filter(self.filter)


Filter: TypeAlias = "Eq | Ne | In | Range | Contains | StartsWith | HasWords | Exists | HasId | And | Or | Not"


_KINDS = (Eq, Ne, In, Range, Contains, StartsWith, HasWords, Exists, HasId, And, Or, Not)


def check_scalar(value: Any, field: str) -> Scalar:
    """Return a value in comparable form."""
    if isinstance(value, bool) or (isinstance(value, str) and not lone_surrogate(value)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime.date) and moment(value) is not None:  # a moment in time, however it is written
        return value
    hint = "; use Exists, or Not(Exists(...))" if value is None else ""
    raise FilterError(f"{field}: cannot compare with {value!r:.60} ({type(value).__name__}){hint}", field=field)


def check_filter(value: Any) -> Filter:
    """Return the value if it is a filter.

    Raises:
        FilterError: it is not, or it is nested too deep.
    """
    if not isinstance(value, _KINDS):
        raise FilterError(f"expected a filter of twinvec_stores.filters.conditions, not {type(value).__name__}")
    if _depth(value) > _MAX_DEPTH:
        raise FilterError(f"a filter is nested more than {_MAX_DEPTH} levels deep")
    return value


def leaves(condition: Filter) -> list[Filter]:
    """Return the conditions combined by And, Or and Not."""
    if isinstance(condition, (And, Or)):
        return [leaf for part in condition.filters for leaf in leaves(part)]
    return leaves(condition.filter) if isinstance(condition, Not) else [condition]


def _check_text(condition: Contains | StartsWith) -> None:
    parse_field(condition.field)
    name, text = type(condition).__name__, condition.text
    if not isinstance(text, str) or not text or lone_surrogate(text):
        raise FilterError(f"{name}({condition.field!r}, ...) needs a text, not {text!r:.60}", field=condition.field)


def _depth(filter: Filter) -> int:
    inner = filter.filters if isinstance(filter, (And, Or)) else (filter.filter,) if isinstance(filter, Not) else ()
    return 1 + max(map(_depth, inner), default=0)


def _is_finite(bound: Any) -> bool:
    try:
        return isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
    except OverflowError:  # an integer beyond float64
        return False

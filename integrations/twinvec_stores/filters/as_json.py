"""Filters as JSON, ``{"year": {"$gte": 2020}, "lang": "ru"}``: the form used by commands and LangChain's stores."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twinvec.errors import FilterError
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
    StartsWith,
    check_filter,
)
from twinvec_stores.filters.fields import parse_field

Make = Callable[[str, Any], Filter]
_PLACE = re.compile(r"\[-?\d+\]")


def parse_filter(form: Mapping[str, Any]) -> Filter:
    """Read a filter in JSON form.

    ``{"field": value}`` means equality; ``{"field": {"$gt": 1, "$lte": 9}}`` supports $eq, $ne, $in, $nin, $gt, $gte,
    $lt, $lte, $between, $exists, $contains and $icontains, $startswith and $istartswith (i: ignoring case), $words, and
    ``{"$range": {"gt": 1, "lte": 9}}``, whose bounds must all hold for the same element of a list. ``{"$and": [...]}``,
    ``{"$or": [...]}`` and ``{"$not": {...}}`` combine filters; several keys in one dict must all match; ``{"$id":
    [...]}`` matches the record's id. Bounds may be dates. See ``twinvec_stores.filters.fields`` for keys with dots.

    Raises:
        FilterError: the form is invalid; says where.
    """
    if not isinstance(form, Mapping):
        raise FilterError(f"a filter must be a dict, not {type(form).__name__}")
    try:
        parts = [_part(key, value) for key, value in form.items()]
    except RecursionError:
        raise FilterError("a filter is nested too deeply") from None
    return parts[0] if len(parts) == 1 else And(*parts)


def filter_to_json(filter: Filter) -> dict[str, Any]:
    """Return a filter in the form read by ``parse_filter``, in JSON types only.

    Raises:
        FilterError: it is not a filter.
    """
    check_filter(filter)
    match filter:
        case And() | Or():
            return {"$and" if isinstance(filter, And) else "$or": [filter_to_json(part) for part in filter.filters]}
        case Not():
            return {"$not": filter_to_json(filter.filter)}
        case HasId():
            return {"$id": list(filter.ids)}
        case Ne():
            return {"$not": filter_to_json(Eq(filter.field, filter.value))}
        case In() if any(isinstance(value, datetime.date) for value in filter.values):
            return {"$or": [filter_to_json(Eq(filter.field, value)) for value in filter.values]}
    head, dot, inner = filter.field.partition(".")
    name = f'"{head}"' if head.startswith("$") else head  # it would be mistaken for an operator
    return {name + dot + inner: _operators(filter)}


def _operators(filter: Eq | In | Range | Contains | StartsWith | HasWords | Exists) -> dict[str, Any]:
    match filter:
        case Eq(value=datetime.date() as value):  # a moment in time, which a string in "$eq" would not be
            form: dict[str, Any] = {"$between": [value.isoformat()] * 2}
        case Eq():
            form = {"$eq": filter.value}
        case In():
            form = {"$in": list(filter.values)}
        case Range():
            bounds = filter.bounds().items()
            form = {"$range": {n: b.isoformat() if isinstance(b, datetime.date) else b for n, b in bounds}}
        case HasWords():
            form = {"$words": filter.words}
        case Exists():
            form = {"$exists": True}
        case Contains() | StartsWith():
            name = "contains" if isinstance(filter, Contains) else "startswith"
            form = {f"${'' if filter.case_sensitive else 'i'}{name}": filter.text}
    return form


def on_key(key: str, make: Make, value: Any) -> Filter:
    """Return a condition on a metadata key; a key that cannot be a path (see ``fields``) is taken literally.

    Raises:
        FilterError: it asks for one place in a list, which no engine can tell.
    """
    try:
        parse_field(key)
    except FilterError:
        if _PLACE.search(key):
            hint = f'{_PLACE.sub("[]", key)} matches any; write "{key}" in double quotes if that is the key'
            raise FilterError(f"{key}: lists cannot be filtered by position: {hint}", field=key) from None
        key = f'"{key}"'
    return make(key, value)


def between(field: str, bounds: Any) -> Filter:
    """Return a range that includes both ends."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise FilterError(f"{field}: $between needs [low, high], not {bounds!r:.60}")
    return Range(field, gte=bounds[0], lte=bounds[1])


def _range(field: str, bounds: Any) -> Filter:
    if not isinstance(bounds, Mapping) or not set(bounds) <= set(RANGES):
        raise FilterError(f"{field}: $range needs some of {', '.join(RANGES)}, not {bounds!r:.60}")
    return Range(field, **bounds)


def _part(key: str, value: Any) -> Filter:
    if key in ("$and", "$or"):
        if isinstance(value, Mapping) or not isinstance(value, Iterable):
            raise FilterError(f"{key} needs a list of filters, not {type(value).__name__}")
        return (And if key == "$and" else Or)(*(parse_filter(part) for part in value))
    if key == "$not":
        return Not(parse_filter(value))
    if key == "$id":
        return HasId(value)
    if not isinstance(key, str) or key.startswith("$"):
        raise FilterError(f"{key!r} is not a field, nor one of $and, $or, $not, $id")
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple, set)):
            raise FilterError(f'{key}: write {{"$in": [...]}} to match one of several values')
        return on_key(key, Eq, value)
    if unknown := [operator for operator in value if operator not in (*_OPERATORS, *_NEGATED, "$exists")]:
        known = ", ".join((*_OPERATORS, *_NEGATED, "$exists"))
        nested = "" if str(unknown[0]).startswith("$") else f'; a field within "{key}" is "{key}.{unknown[0]}"'
        raise FilterError(f"{key}: {unknown[0]!r} is not one of {known}{nested}")
    parts = [_condition(key, operator, operand) for operator, operand in value.items()]
    return parts[0] if len(parts) == 1 else And(*parts)


def _condition(key: str, operator: str, operand: Any) -> Filter:
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise FilterError(f"{key}: $exists needs true or false, not {operand!r:.60}")
        exists = on_key(key, lambda field, _: Exists(field), None)
        return exists if operand else Not(exists)
    if operator in _NEGATED:
        return Not(on_key(key, _NEGATED[operator], operand))
    return on_key(key, _OPERATORS[operator], operand)


RANGES: Mapping[str, Make] = {
    "gt": lambda field, bound: Range(field, gt=bound),
    "gte": lambda field, bound: Range(field, gte=bound),
    "lt": lambda field, bound: Range(field, lt=bound),
    "lte": lambda field, bound: Range(field, lte=bound),
}
_OPERATORS: Mapping[str, Make] = {
    "$eq": Eq,
    "$in": In,
    **{f"${name}": make for name, make in RANGES.items()},
    "$between": between,
    "$range": _range,
    "$contains": Contains,
    "$icontains": lambda field, text: Contains(field, text, case_sensitive=False),
    "$startswith": StartsWith,
    "$istartswith": lambda field, text: StartsWith(field, text, case_sensitive=False),
    "$words": HasWords,
}
_NEGATED: Mapping[str, Make] = {"$ne": Eq, "$nin": In}

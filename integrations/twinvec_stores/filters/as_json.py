"""Filters as JSON: ``{"year": {"$gte": 2020}, "lang": "ru"}``, the form that commands and LangChain's stores take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twinvec.errors import FilterError
from twinvec_stores.filters.conditions import (
    And,
    Contains,
    Eq,
    Exists,
    Filter,
    HasWords,
    In,
    Not,
    Or,
    Range,
    StartsWith,
)
from twinvec_stores.filters.fields import parse_field

Make = Callable[[str, Any], Filter]


def parse_filter(form: Mapping[str, Any]) -> Filter:
    """Read a filter that is written as JSON.

    ``{"field": value}`` means equality; ``{"field": {"$gt": 1, "$lte": 9}}`` knows $eq, $ne, $in, $nin, $gt, $gte,
    $lt, $lte, $between, $exists, $contains and $icontains, $startswith and $istartswith (i: in any case), $words;
    ``{"$and": [...]}``, ``{"$or": [...]}`` and ``{"$not": {...}}`` join; several keys of one dict must all match.
    Bounds may be dates. See ``twinvec_stores.filters.fields`` for keys with dots.

    Raises:
        FilterError: another form; says where.
    """
    if not isinstance(form, Mapping):
        raise FilterError(f"a filter must be a dict, not {type(form).__name__}")
    parts = [_part(key, value) for key, value in form.items()]
    return parts[0] if len(parts) == 1 else And(*parts)


def on_key(key: str, make: Make, value: Any) -> Filter:
    """Return a condition on a metadata key; one that cannot be a path (see ``fields``) is meant as it stands."""
    try:
        parse_field(key)
    except FilterError:
        key = f'"{key}"'
    return make(key, value)


def between(field: str, bounds: Any) -> Filter:
    """Return a range with both its ends."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise FilterError(f"{field}: $between needs [low, high], not {bounds!r:.60}")
    return Range(field, gte=bounds[0], lte=bounds[1])


def _part(key: str, value: Any) -> Filter:
    if key in ("$and", "$or"):
        if isinstance(value, Mapping) or not isinstance(value, Iterable):
            raise FilterError(f"{key} needs a list of filters, not {type(value).__name__}")
        return (And if key == "$and" else Or)(*(parse_filter(part) for part in value))
    if key == "$not":
        return Not(parse_filter(value))
    if not isinstance(key, str) or key.startswith("$"):
        raise FilterError(f"{key!r} is not a field, nor one of $and, $or, $not")
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple, set)):
            raise FilterError(f'{key}: write {{"$in": [...]}} to match one of several values')
        return on_key(key, Eq, value)
    if unknown := [operator for operator in value if operator not in (*_OPERATORS, *_NEGATED, "$exists")]:
        known = ", ".join((*_OPERATORS, *_NEGATED, "$exists"))
        raise FilterError(f"{key}: {unknown[0]!r} is not one of {known}")
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
    "$contains": Contains,
    "$icontains": lambda field, text: Contains(field, text, case_sensitive=False),
    "$startswith": StartsWith,
    "$istartswith": lambda field, text: StartsWith(field, text, case_sensitive=False),
    "$words": HasWords,
}
_NEGATED: Mapping[str, Make] = {"$ne": Eq, "$nin": In}

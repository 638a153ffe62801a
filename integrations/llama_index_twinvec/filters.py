"""Converting LlamaIndex's MetadataFilters to filters of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from twinvec.errors import FilterError
from twinvec_stores import And, Contains, Eq, Exists, Filter, In, Not, Or
from twinvec_stores.filters.as_json import RANGES, Make, on_key


def from_llama_index(filters: MetadataFilters) -> Filter:
    """Translate LlamaIndex's MetadataFilters, including nested ones.

    CONTAINS, ANY and ALL look at the elements of a list, TEXT_MATCH within a string; dates are ISO 8601 strings. NE and
    NIN match nodes without the field. A key with dots is a key of the (flat) metadata, or a path into nested objects.
    Without filters, everything matches.

    Raises:
        FilterError: an operator cannot be translated, or these are not MetadataFilters.
    """
    if not isinstance(filters, MetadataFilters):
        raise FilterError(
            f"filters must be MetadataFilters, not {type(filters).__name__}: "
            "MetadataFilters(filters=[MetadataFilter(key=..., value=...)])"
        )
    parts = [_part(part) for part in filters.filters]
    condition = filters.condition.value if filters.condition is not None else "and"
    if condition == "and" or not parts:
        return And(*parts)
    return Not(Or(*parts)) if condition == "not" else Or(*parts)


def _part(part: MetadataFilter | MetadataFilters) -> Filter:
    if isinstance(part, MetadataFilters):
        return from_llama_index(part)
    operator = part.operator.value
    make = _OPERATORS.get(operator) or _NEGATED.get(operator)
    if make is None:
        known = ", ".join([*_OPERATORS, *_NEGATED])
        raise FilterError(f"{part.key}: the operator {part.operator.name} is not one of this store's: {known}")
    found = on_key(part.key, make, part.value)
    return Not(found) if operator in _NEGATED else found


def _all(field: str, values: Any) -> Filter:
    return And(*(Eq(field, value) for value in In(field, values).values))


_OPERATORS: Mapping[str, Make] = {
    "==": Eq,
    ">": RANGES["gt"],
    ">=": RANGES["gte"],
    "<": RANGES["lt"],
    "<=": RANGES["lte"],
    "in": In,
    "any": In,
    "all": _all,
    "contains": Eq,
    "text_match": Contains,
    "is_empty": lambda field, _: Or(Not(Exists(field)), Eq(field, "")),
    "text_match_insensitive": lambda field, text: Contains(field, text, case_sensitive=False),
}
_NEGATED: Mapping[str, Make] = {
    "!=": Eq,
    "nin": In,
}

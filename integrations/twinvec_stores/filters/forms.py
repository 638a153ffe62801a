"""Other libraries' filter forms as neutral filters: LangChain's dicts and LlamaIndex's MetadataFilters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from twinvec.errors import FilterError
from twinvec_stores.filters.conditions import And, Eq, Exists, Filter, In, Ne, Not, Or, Range, parse_field

if TYPE_CHECKING:
    from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

_Make = Callable[[str, Any], Filter]


def from_langchain(form: Mapping[str, Any]) -> Filter:
    """Translate the dict form that LangChain's vector stores share.

    ``{"field": value}`` means equality; ``{"field": {"$gt": 1, "$lte": 9}}`` knows $eq, $ne, $in, $nin, $gt, $gte,
    $lt, $lte, $between and $exists; ``{"$and": [...]}``, ``{"$or": [...]}`` and ``{"$not": {...}}`` join; several keys
    of one dict must all match. A field is a metadata key, also one with dots when it cannot be a path.

    Raises:
        FilterError: another form; says where.
    """
    if not isinstance(form, Mapping):
        raise FilterError(f"a filter must be a dict, not {type(form).__name__}")
    parts = [_langchain_part(key, value) for key, value in form.items()]
    return parts[0] if len(parts) == 1 else And(*parts)


def from_llama_index(filters: MetadataFilters) -> Filter:
    """Translate LlamaIndex's MetadataFilters, nested ones too.

    CONTAINS, ANY and ALL look at the elements of a list; TEXT_MATCH has no counterpart here. NE and NIN match nodes
    without the field. A key with dots is a key of the (flat) metadata, or a path into nested objects. No filters match
    everything.

    Raises:
        FilterError: an operator that cannot be translated.
    """
    parts = [_llama_index_part(part) for part in filters.filters]
    condition = filters.condition.value if filters.condition is not None else "and"
    if condition == "and" or not parts:
        return And(*parts)
    return Not(Or(*parts)) if condition == "not" else Or(*parts)


def _llama_index_part(part: MetadataFilter | MetadataFilters) -> Filter:
    from llama_index.core.vector_stores.types import MetadataFilters

    if isinstance(part, MetadataFilters):
        return from_llama_index(part)
    operator = part.operator.value
    make = _LLAMA_INDEX.get(operator) or _LLAMA_INDEX_NEGATED.get(operator)
    if make is None:
        known = ", ".join([*_LLAMA_INDEX, *_LLAMA_INDEX_NEGATED])
        raise FilterError(f"{part.key}: the operator {part.operator.name} is not one of this store's: {known}")
    fields = dict.fromkeys((_field(part.key), f'"{part.key}"' if "." in part.key else _field(part.key)))
    found = Or(*(make(field, part.value) for field in fields))
    return Not(found) if operator in _LLAMA_INDEX_NEGATED else found


def _langchain_part(key: str, value: Any) -> Filter:
    if key in ("$and", "$or"):
        if isinstance(value, Mapping) or not isinstance(value, Iterable):
            raise FilterError(f"{key} needs a list of filters, not {type(value).__name__}")
        return (And if key == "$and" else Or)(*(from_langchain(part) for part in value))
    if key == "$not":
        return Not(from_langchain(value))
    if not isinstance(key, str) or key.startswith("$"):
        raise FilterError(f"{key!r} is not a field, nor one of $and, $or, $not")
    field = _field(key)
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple, set)):
            raise FilterError(f'{key}: write {{"$in": [...]}} to match one of several values')
        return Eq(field, value)
    if unknown := [operator for operator in value if operator not in _LANGCHAIN]:
        raise FilterError(f"{key}: {unknown[0]!r} is not one of {', '.join(_LANGCHAIN)}")
    parts = [_LANGCHAIN[operator](field, operand) for operator, operand in value.items()]
    return parts[0] if len(parts) == 1 else And(*parts)


def _field(key: str) -> str:
    """Return a metadata key as a field; one that cannot be a path is put in quotes."""
    try:
        parse_field(key)
        return key
    except FilterError:
        return f'"{key}"'


def _all(field: str, values: Any) -> Filter:
    return And(*(Eq(field, value) for value in In(field, values).values))


def _between(field: str, bounds: Any) -> Filter:
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise FilterError(f"{field}: $between needs [low, high], not {bounds!r:.60}")
    return Range(field, gte=bounds[0], lte=bounds[1])


def _exists(field: str, wanted: Any) -> Filter:
    if not isinstance(wanted, bool):
        raise FilterError(f"{field}: $exists needs true or false, not {wanted!r:.60}")
    return Exists(field) if wanted else Not(Exists(field))


def _not_in(field: str, values: Any) -> Filter:
    return Not(In(field, values))


_RANGES: dict[str, _Make] = {
    "gt": lambda field, bound: Range(field, gt=bound),
    "gte": lambda field, bound: Range(field, gte=bound),
    "lt": lambda field, bound: Range(field, lt=bound),
    "lte": lambda field, bound: Range(field, lte=bound),
}
_LANGCHAIN: dict[str, _Make] = {
    "$eq": Eq,
    "$ne": Ne,
    "$in": In,
    "$nin": _not_in,
    **{f"${name}": make for name, make in _RANGES.items()},
    "$between": _between,
    "$exists": _exists,
}
_LLAMA_INDEX: dict[str, _Make] = {
    "==": Eq,
    ">": _RANGES["gt"],
    ">=": _RANGES["gte"],
    "<": _RANGES["lt"],
    "<=": _RANGES["lte"],
    "in": In,
    "any": In,
    "all": _all,
    "contains": Eq,
}
_LLAMA_INDEX_NEGATED: dict[str, _Make] = {
    "!=": Eq,
    "nin": In,
    "is_empty": lambda field, _: Exists(field),
}

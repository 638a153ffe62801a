"""From the structured queries written by a language model to filters of a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

from langchain_core.structured_query import (
    Comparator,
    Comparison,
    FilterDirective,
    Operation,
    Operator,
    StructuredQuery,
    Visitor,
)

from twinvec.errors import FilterError
from twinvec_stores import And, Filter, Not, Or, parse_filter

_JOINS: Mapping[Operator, Callable[..., Filter]] = {Operator.AND: And, Operator.OR: Or}


class TwinVecTranslator(Visitor):
    """For ``SelfQueryRetriever.from_llm(..., structured_query_translator=TwinVecTranslator())``.

    It has to be passed, because LangChain's own table of translators only knows its own packages. CONTAIN matches an
    item of a list, or part of a string; LIKE matches part of a string, or with "abc%" its beginning, ignoring case. A
    date equals any time on that day.
    """

    allowed_comparators = tuple(Comparator)
    allowed_operators = tuple(Operator)

    def visit_operation(self, operation: Operation) -> Filter:
        """Return the conditions of an operation, combined."""
        self._validate_func(operation.operator)
        parts = [self._filter(argument) for argument in operation.arguments]
        if operation.operator is Operator.NOT:
            return Not(And(*parts)) if len(parts) > 1 else Not(*parts)
        return _JOINS[operation.operator](*parts)

    def visit_comparison(self, comparison: Comparison) -> Filter:
        """Return the condition of a comparison.

        Raises:
            FilterError: the value cannot be compared with.
        """
        self._validate_func(comparison.comparator)
        field, value = comparison.attribute, _plain(comparison.value)
        match comparison.comparator:
            case Comparator.CONTAIN if isinstance(value, str):
                return Or(parse_filter({field: value}), parse_filter({field: {"$contains": value}}))
            case Comparator.CONTAIN:
                return parse_filter({field: value})
            case Comparator.LIKE:
                return parse_filter({field: _like(field, value)})
            case Comparator.EQ | Comparator.NE if _is_day(comparison.value):
                day = parse_filter({field: {"$gte": value, "$lt": _day_after(value)}})
                return day if comparison.comparator is Comparator.EQ else Not(day)
            case Comparator.IN | Comparator.NIN if not isinstance(value, list):
                value = [value]
        return parse_filter({field: {f"${comparison.comparator.value}": value}})

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """Return the query, and the filter as arguments of a search."""
        if structured_query.filter is None:
            return structured_query.query, {}
        return structured_query.query, {"filter": self._filter(structured_query.filter)}

    def _filter(self, directive: FilterDirective) -> Filter:
        made: Filter = directive.accept(self)
        return made


def _like(field: str, pattern: Any) -> dict[str, Any]:
    """Return the meaning of an SQL pattern, as far as a store supports it."""
    text = pattern.rstrip("%") if isinstance(pattern, str) else pattern
    starts = isinstance(pattern, str) and pattern.endswith("%") and not pattern.startswith("%")
    text = text.lstrip("%") if isinstance(text, str) else text
    if isinstance(text, str) and ("%" in text or (pattern.startswith("%") and not pattern.endswith("%"))):
        raise FilterError(f"{field}: like {pattern!r:.60} is neither part of a string nor its beginning")
    return {"$istartswith" if starts else "$icontains": text}


def _is_day(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "date"


def _day_after(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def _plain(value: Any) -> Any:
    """Return a value without the wrapper in which query constructors write dates."""
    if isinstance(value, dict) and value.get("type") in ("date", "datetime"):
        return value[value["type"]]
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

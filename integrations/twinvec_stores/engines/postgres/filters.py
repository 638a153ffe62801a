"""Filters in SQL: declared fields by their columns, others by the JSON of the metadata."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from psycopg import sql
from psycopg.types.json import Jsonb

from twinvec_stores.config import FieldType, StoreConfig
from twinvec_stores.engines.postgres.rows import decimal, escaped
from twinvec_stores.engines.postgres.schema import Schema
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
from twinvec_stores.filters.fields import Part, parse_field, readings
from twinvec_stores.filters.matching import words
from twinvec_stores.filters.moments import moment
from twinvec_stores.filters.numbers import Interval, comparable
from twinvec_stores.records import point_id

_MAX_PARTS = 4  # a path of 4 parts has 27 readings; longer ones are compared here
_MISREAD = "\x00\ufffe\uffff"  # parts of escaped strings could be taken for these
_Predicate: TypeAlias = Callable[[sql.Composable], sql.Composable]


def answers(condition: Filter, config: StoreConfig) -> bool:
    """Return whether a condition on one field can be translated."""
    if isinstance(condition, HasId) or not hasattr(condition, "field"):
        return True
    kind = config.fields.get(condition.field)
    if len(parse_field(condition.field)) > _MAX_PARTS:
        return False
    if isinstance(condition, (Contains, StartsWith)):
        return condition.case_sensitive and not any(character in condition.text for character in _MISREAD)
    if isinstance(condition, HasWords):
        return kind == "text"
    given = condition.values if isinstance(condition, In) else (getattr(condition, "value", None),)
    of_moments = isinstance(condition, Range) and condition.of_moments
    return kind == "datetime" or not (of_moments or any(isinstance(value, datetime.date) for value in given))


class Translator:
    """Filters of one statement."""

    def __init__(self, config: StoreConfig, bind: Callable[[Any], sql.Placeholder]) -> None:
        """Translate for a store; ``bind`` gives each value a placeholder."""
        self._config, self._bind = config, bind

    def where(self, condition: Filter) -> sql.Composable:  # noqa: PLR0911
        """Return a condition on a row of ``records``, which may be NULL where it does not hold."""
        match condition:
            case And() | Or() if condition.filters:
                joined = sql.SQL(" AND " if isinstance(condition, And) else " OR ")
                return sql.SQL("({})").format(joined.join(map(self.where, condition.filters)))
            case And() | Or():
                return sql.SQL("TRUE" if isinstance(condition, And) else "FALSE")
            case Not():
                return sql.SQL("NOT coalesce({}, FALSE)").format(self.where(condition.filter))
            case Ne():
                return self.where(Not(Eq(condition.field, condition.value)))
            case HasId():
                return sql.SQL("point = ANY({}::uuid[])").format(self._bind([point_id(id) for id in condition.ids]))
            case HasWords():
                asked = self._bind(sorted(words(condition.words)))
                return sql.SQL("{} @> {}::text[]").format(Schema.column(condition.field, self._config), asked)
            case Exists():
                return self._reached(condition.field, _exists)
            case Contains():
                text = json.dumps(condition.text, ensure_ascii=False)
                return self._elements(condition.field, f'@.type() == "string" && @ like_regex {text} flag "q"')
            case StartsWith():
                text = json.dumps(condition.text, ensure_ascii=False)
                return self._elements(condition.field, f'@.type() == "string" && @ starts with {text}')
            case Range():
                return self._range(condition)
            case _:
                return self._equal(
                    condition.field, condition.values if isinstance(condition, In) else (condition.value,)
                )

    def _equal(self, field: str, values: Sequence[Scalar]) -> sql.Composable:
        kind = self._config.fields.get(field)
        typed = [value for value in values if _suits(value, kind)]
        others = [Jsonb(_compared(value)) for value in values if not _suits(value, kind)]
        cases: list[sql.Composable] = []
        if typed and kind in ("keyword", "bool"):
            elements = self._bind([_compared(value) for value in typed])
            kinds = sql.SQL("text[]" if kind == "keyword" else "boolean[]")
            cases.append(sql.SQL("{} && {}::{}").format(Schema.column(field, self._config), elements, kinds))
        elif typed:
            numbers = [_number(value) for value in typed]
            cases.append(self._numbers(field, [Interval(number, number) for number in numbers]))
        if others:
            asked = self._bind(others)
            cases.append(self._reached(field, lambda value: sql.SQL("{} @> ANY({}::jsonb[])").format(value, asked)))
        return sql.SQL("({})").format(sql.SQL(" OR ").join(cases)) if cases else sql.SQL("FALSE")

    def _range(self, condition: Range) -> sql.Composable:
        kind, interval = self._config.fields.get(condition.field), Interval.of(condition.numbers())
        if (kind == "datetime") if condition.of_moments else (kind in ("integer", "float")):
            return self._numbers(condition.field, [interval])
        bounds = [] if interval.low is None else [f"@ {'>' if interval.above else '>='} {decimal(interval.low)}"]
        bounds += [] if interval.high is None else [f"@ {'<' if interval.below else '<='} {decimal(interval.high)}"]
        return self._elements(condition.field, " && ".join(['@.type() == "number"', *bounds]))

    def _numbers(self, field: str, intervals: Sequence[Interval]) -> sql.Composable:
        """Return a condition on the column of a field of numbers or dates, which holds ranges of one number."""
        asked = self._bind("{" + ",".join(map(_range_literal, intervals)) + "}")
        return sql.SQL("{} && {}::nummultirange").format(Schema.column(field, self._config), asked)

    def _elements(self, field: str, test: str) -> sql.Composable:
        """Return a condition on what a field has, or on any element if it is a list, as a test in JSON path."""
        path = self._bind(f"strict $[*] ? ({test})")  # otherwise lists in a list are looked into
        elements = sql.SQL(
            "jsonb_path_exists(CASE jsonb_typeof({value}) WHEN 'array' THEN {value} ELSE jsonb_build_array({value}) END"
            ", {path}::jsonpath)"
        )
        return self._reached(field, lambda value: elements.format(value=value, path=path))

    def _reached(self, field: str, predicate: _Predicate) -> sql.Composable:
        """Return a condition on whatever a path leads to, by any of its readings."""
        cases = [self._some(sql.SQL("metadata"), parts, predicate) for parts in readings(field)]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(cases))

    def _some(self, value: sql.Composable, parts: Sequence[Part], predicate: _Predicate) -> sql.Composable:
        (part, *rest) = parts
        inner = sql.SQL("({} -> {}::text)").format(value, self._bind(escaped(part.key)))
        if not rest:
            return predicate(inner)
        if not part.in_list:
            return self._some(inner, rest, predicate)
        element = sql.Identifier(f"element_{len(rest)}")
        return sql.SQL(
            "EXISTS (SELECT FROM jsonb_array_elements(CASE jsonb_typeof({list}) WHEN 'array' THEN {list} END) "
            "AS {element} WHERE {holds})"
        ).format(list=inner, element=element, holds=self._some(element, rest, predicate))


def _exists(value: sql.Composable) -> sql.Composable:
    return sql.SQL("({value} <> 'null' AND {value} <> '[]')").format(value=value)


def _suits(value: Scalar, kind: FieldType | None) -> bool:
    """Return whether the column of a declared field has values of this type."""
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, str):
        return kind == "keyword"
    return kind == "datetime" if isinstance(value, datetime.date) else kind in ("integer", "float")


def _compared(value: Scalar) -> Any:
    if isinstance(value, str):
        return escaped(value)
    return value if isinstance(value, bool) else _number(value)


def _number(value: Scalar) -> float | None:
    return comparable(value) if isinstance(value, (int, float)) else moment(value)


def _range_literal(interval: Interval) -> str:
    if interval.low is not None and interval.high is not None and interval.low > interval.high:
        return "empty"
    ends = ["" if end is None else str(decimal(end)) for end in (interval.low, interval.high)]
    return f"{'(' if interval.above else '['}{ends[0]},{ends[1]}{')' if interval.below else ']'}"

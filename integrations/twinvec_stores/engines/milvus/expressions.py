"""Filters as expressions of Milvus, over the columns of ``schema``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.milvus.facts import existence_facts, value_facts, word_facts
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
)
from twinvec_stores.filters.fields import parse_field
from twinvec_stores.filters.numbers import WIDE, Interval
from twinvec_stores.records import point_id

EVERYTHING, NOTHING = 'point != ""', 'point == ""'
_MAX_PARTS = 4  # a path of 4 parts has 27 readings; longer ones are compared here
_NUMBERS = ("integer", "float", "datetime")
_LEAST, _MOST = -(2**63), 2**63 - 1
Straddling = Mapping[int, Sequence[str]]


def number_columns(config: StoreConfig) -> dict[str, tuple[str, str]]:
    """Return the declared fields of numbers and dates, with the columns of the lowest and of the highest of each."""
    kinds = enumerate(config.fields.items())
    return {field: (f"low_{i}", f"high_{i}") for i, (field, kind) in kinds if kind in _NUMBERS}


def answers(condition: Filter, config: StoreConfig) -> bool:
    """Return whether a condition on one field can be written as an expression."""
    match condition:
        case Contains() | StartsWith():
            return False
        case HasWords():
            return config.fields.get(condition.field) == "text"
        case Range():
            kind = config.fields.get(condition.field)
            if kind == "float":  # its column is a float64, which does not hold every integer
                return not condition.of_moments and all(abs(number) < WIDE for number in condition.numbers().values())
            return kind == ("datetime" if condition.of_moments else "integer")
        case Eq() | Ne() | In() | Exists():
            return len(parse_field(condition.field)) <= _MAX_PARTS
    return True


def expression(condition: Filter, config: StoreConfig, straddling: Straddling) -> str:  # noqa: PLR0911
    """Return an expression that is true or false for every record.

    Args:
        condition: a filter whose leaves can be written.
        config: the store's configuration.
        straddling: for each range of ``undecided``, by its identity, the points that it matches.
    """
    match condition:
        case And() | Or() if condition.filters:
            joint = " and " if isinstance(condition, And) else " or "
            return f"({joint.join(expression(part, config, straddling) for part in condition.filters)})"
        case And() | Or():
            return EVERYTHING if isinstance(condition, And) else NOTHING
        case Not():
            return f"not ({expression(condition.filter, config, straddling)})"
        case Ne():
            return f"not ({_has('any', value_facts(condition.field, [condition.value]))})"
        case HasId():
            return at_points([point_id(id) for id in condition.ids])
        case HasWords():
            return _has("all", word_facts(condition.field, condition.words))
        case Exists():
            return _has("any", existence_facts(condition.field))
        case Range():
            return _range(condition, config, straddling.get(id(condition), ()))
        case Eq():
            return _has("any", value_facts(condition.field, [condition.value]))
        case In():
            return _has("any", value_facts(condition.field, condition.values))
    raise AssertionError(f"{condition!r} is not answered")


def at_points(points: Sequence[str]) -> str:
    """Return an expression for records at these points."""
    return f"point in {json.dumps(list(points))}" if points else NOTHING


def undecided(condition: Filter, config: StoreConfig) -> str | None:
    """Return an expression for the records of which a range's columns do not say whether they match.

    Those are records with a list whose lowest number is below the range and whose highest is above it.
    """
    if not isinstance(condition, Range):
        return None
    interval = _interval(condition, config)
    if interval is None or interval.low is None or interval.high is None:
        return None
    low, high = number_columns(config)[condition.field]
    below = f"{low} {'<=' if interval.above else '<'} {interval.low!r}"
    above = f"{high} {'>=' if interval.below else '>'} {interval.high!r}"
    return f"({low} is not null and {below} and {above})"


def _has(mode: str, facts: Sequence[str]) -> str:
    return f"array_contains_{mode}(facts, {json.dumps(facts)})" if facts else NOTHING


def _range(condition: Range, config: StoreConfig, points: Sequence[str]) -> str:
    interval = _interval(condition, config)
    if interval is None:
        return NOTHING
    low, high = number_columns(config)[condition.field]
    enough = f"{{}} {'>' if interval.above else '>='} {interval.low!r}"
    few = f"{{}} {'<' if interval.below else '<='} {interval.high!r}"
    if interval.low is None:
        within = "" if interval.high is None else f" and {few.format(low)}"
    elif interval.high is None:
        within = f" and {enough.format(high)}"
    else:
        ends = [f"({enough.format(column)} and {few.format(column)})" for column in (low, high)]
        within = f" and ({' or '.join([*ends, *([at_points(points)] if points else [])])})"
    return f"({low} is not null{within})"


def _interval(condition: Range, config: StoreConfig) -> Interval | None:
    """Return the numbers of a range, without ends that every number is within; None if there are none."""
    interval = Interval.of(condition.numbers())
    if config.fields[condition.field] == "float":
        return interval
    whole = interval.whole()
    if whole is None:
        return None
    return Interval(None if whole.low == _LEAST else whole.low, None if whole.high == _MOST else whole.high)

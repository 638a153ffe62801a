"""Filters as JSON mean what users of LangChain's stores mean by them."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from stores.test_filters import CASES, ID
from twinvec.errors import FilterError
from twinvec_stores import (
    And,
    Contains,
    Eq,
    Exists,
    Filter,
    HasWords,
    In,
    Ne,
    Not,
    Or,
    Range,
    StartsWith,
    parse_filter,
)
from twinvec_stores.filters.as_json import filter_to_json
from twinvec_stores.filters.matching import matches


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"source": "faq"}, Eq("source", "faq")),
        ({"source": "faq", "year": 2020}, And(Eq("source", "faq"), Eq("year", 2020))),
        ({"year": {"$gt": 2019, "$lte": 2024}}, And(Range("year", gt=2019), Range("year", lte=2024))),
        ({"year": {"$gte": 1}}, Range("year", gte=1)),
        ({"year": {"$lt": 1.5}}, Range("year", lt=1.5)),
        ({"year": {"$between": [1, 2]}}, Range("year", gte=1, lte=2)),
        ({"a": {"$eq": True}}, Eq("a", True)),
        ({"a": {"$ne": "x"}}, Not(Eq("a", "x"))),
        ({"a": {"$in": ["x", 1]}}, In("a", ["x", 1])),
        ({"a": {"$nin": ["x"]}}, Not(In("a", ["x"]))),
        ({"a": {"$exists": True}}, Exists("a")),
        ({"a": {"$exists": False}}, Not(Exists("a"))),
        ({"$and": [{"a": 1}, {"$or": [{"b": 2}, {"c": 3}]}]}, And(Eq("a", 1), Or(Eq("b", 2), Eq("c", 3)))),
        ({"$not": {"a": 1}}, Not(Eq("a", 1))),
        ({"loc.lines.from": 3}, Eq("loc.lines.from", 3)),
        ({"a.b": {"$ne": 1}}, Not(Eq("a.b", 1))),
        ({"tags[].id": 1}, Eq("tags[].id", 1)),
        ({"day": {"$gte": "2020-01-01"}}, Range("day", gte="2020-01-01")),
        ({"a": {"$contains": "x"}}, Contains("a", "x")),
        ({"a": {"$istartswith": "x"}}, StartsWith("a", "x", case_sensitive=False)),
        ({"a": {"$words": "red apples"}}, HasWords("a", "red apples")),
        ({"a key [x]": 1}, Eq('"a key [x]"', 1)),
        ({}, And()),
    ],
)
def test_translation(form: dict[str, Any], expected: Filter) -> None:
    assert parse_filter(form) == expected


def test_the_whole_decides() -> None:
    condition = parse_filter({"$or": [{"year": {"$gte": 2000, "$lt": 2010}}, {"tag": {"$in": ["a", "b"]}}]})
    assert matches(condition, "x", {"year": 2009})
    assert matches(condition, "x", {"year": 1, "tag": ["c", "b"]})
    assert not matches(condition, "x", {"year": 2010, "tag": "c"})


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("source", "must be a dict"),
        ({"a": ["x", "y"]}, r"\$in"),
        ({"a": {"$like": "x%"}}, r"\$like"),
        ({"$nor": []}, r"\$nor"),
        ({"a": None}, "Exists"),
        ({"a": {"$between": [1]}}, "low, high"),
        ({"a": {"$in": "abc"}}, "list"),
        ({"a": {"$gt": "yesterday"}}, "number"),
        ({"a": {"$exists": 1}}, "true or false"),
        ({"$and": {"a": 1}}, "list"),
        ({"a": {"b": 1}}, "'b'"),
        ({"a": {"$contains": ""}}, "needs a text"),
        ({"a": {"$words": "--"}}, "needs words"),
        ({"tags[0].id": 5}, r"tags\[\].id matches any"),
        ({"tags[-1]": {"$in": [5]}}, r"tags\[\] matches any"),
        ({"a[1].b[2]": {"$exists": False}}, r"a\[\].b\[\] matches any"),
    ],
)
def test_other_forms_are_refused_with_the_reason(form: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(form)


@pytest.mark.parametrize(("filter", "metadata", "expected"), CASES)
def test_a_filter_as_json_means_the_same(filter: Filter, metadata: dict[str, Any], expected: bool) -> None:
    form = json.loads(json.dumps(filter_to_json(filter)))
    assert matches(parse_filter(form), ID, metadata) is expected


DAY = datetime.datetime(2025, 1, 3, 9, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    "filter",
    [
        Eq("day", DAY),
        Eq("day", DAY.date()),
        Ne("day", DAY),
        In("day", [DAY, "x"]),
        Range("day", gte=DAY, lt=datetime.date(2026, 1, 1)),
        Eq("$day", "x"),
        Eq("$a.b", 1),
        Contains("text", "ПРИ", case_sensitive=False),
        StartsWith("text", "При"),
        HasWords("text", "мир, привет"),
    ],
)
def test_moments_texts_and_odd_fields_survive(filter: Filter) -> None:
    read = parse_filter(json.loads(json.dumps(filter_to_json(filter))))
    for metadata in (
        {"day": "2025-01-03T12:00:00+03:00"},
        {"day": ["2025-01-03T00:00:00Z", "x"]},
        {"day": "2027-01-01"},
        {"$day": "x", "$a": {"b": 1}, "text": "Привет, мир"},
    ):
        assert matches(read, ID, metadata) is matches(filter, ID, metadata)

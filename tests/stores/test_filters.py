"""What a filter means, case by case, and that every engine means the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stores.conftest import Make
from stores.oracle import Row, batch, holds
from twinvec.errors import FilterError
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import (
    And,
    Eq,
    Exists,
    Filter,
    HasId,
    In,
    Ne,
    Not,
    Or,
    Range,
)
from twinvec_stores.filters.fields import parse_field
from twinvec_stores.filters.matching import matches

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

PLAIN = StoreConfig(fingerprint="f", dim=4, sparse=False)
ID = "the record"

NESTED = {"a": {"b": {"c": 1}}}
QUOTED = {"a.b": 1, "a": {"b": 2, "c d": 3, "": 4}, "": 5, " ": 6, "日本 語": 7, "it's": 8, "[0]": 9, "x[]": 10}
CASES: list[tuple[Filter, dict[str, Any], bool]] = [
    # equality, by type
    (Eq("k", "x"), {"k": "x"}, True),
    (Eq("k", "x"), {"k": "X"}, False),
    (Eq("k", "x"), {"k": "x "}, False),
    (Eq("k", ""), {"k": ""}, True),
    (Eq("k", "\u00e9"), {"k": "e\u0301"}, False),  # no normalisation
    (Eq("k", "1"), {"k": 1}, False),
    (Eq("k", 1), {"k": "1"}, False),
    (Eq("k", 1), {"k": 1}, True),
    (Eq("k", 1), {"k": 1.0}, True),
    (Eq("k", 1.0), {"k": 1}, True),
    (Eq("k", 0), {"k": -0.0}, True),
    (Eq("k", 1), {"k": True}, False),
    (Eq("k", 0), {"k": False}, False),
    (Eq("k", 1.0), {"k": True}, False),
    (Eq("k", True), {"k": 1}, False),
    (Eq("k", True), {"k": "true"}, False),
    (Eq("k", True), {"k": True}, True),
    (Eq("k", False), {"k": False}, True),
    (Eq("k", False), {"k": True}, False),
    (Eq("k", False), {"k": None}, False),
    (Eq("k", 0.1), {"k": 0.1}, True),
    (Eq("k", 0.1), {"k": 0.1 + 1e-9}, False),
    (Eq("k", 0.3), {"k": 0.1 + 0.2}, True),  # floats count to 15 digits
    (Eq("k", 1 / 3), {"k": 1 / 3}, True),
    (Eq("k", 1e-300), {"k": 1e-300}, True),
    (Eq("k", 1.23456789012345e-12), {"k": 1.23456789012345e-12}, True),
    (Eq("k", 1.23456789012345e-12), {"k": 1.23456789012346e-12}, False),
    (Eq("k", 1.23456789012345e300), {"k": 1.23456789012345e300}, True),
    (Eq("k", 1234567890123450.0), {"k": 1234567890123450.0}, True),
    (Eq("k", 2**53), {"k": 2**53}, True),
    (Eq("k", 2**53), {"k": 2**53 + 1}, False),
    (Eq("k", 2**53 + 1), {"k": 2**53 + 1}, True),
    (Eq("k", 2**63 - 1), {"k": 2**63 - 1}, True),
    (Eq("k", 2**63 - 1), {"k": 2**63 - 2}, False),
    (Eq("k", -(2**63)), {"k": -(2**63)}, True),
    (Eq("k", -1), {"k": 1}, False),
    # what is missing, null, empty or an object
    (Eq("k", "x"), {}, False),
    (Eq("k", "x"), {"k": None}, False),
    (Eq("k", "x"), {"k": []}, False),
    (Eq("k", "x"), {"k": {"x": "x"}}, False),
    (Ne("k", "x"), {}, True),
    (Ne("k", "x"), {"k": None}, True),
    (Ne("k", "x"), {"k": []}, True),
    (Ne("k", "x"), {"k": "y"}, True),
    (Ne("k", "x"), {"k": 1}, True),
    (Ne("k", "x"), {"k": "x"}, False),
    (Ne("k", True), {"k": 1}, True),
    (Ne("k", 1), {"k": 1.0}, False),
    (Exists("k"), {"k": "x"}, True),
    (Exists("k"), {"k": ""}, True),
    (Exists("k"), {"k": 0}, True),
    (Exists("k"), {"k": False}, True),
    (Exists("k"), {"k": {}}, True),
    (Exists("k"), {"k": [None]}, True),
    (Exists("k"), {"k": [[]]}, True),
    (Exists("k"), {"k": []}, False),
    (Exists("k"), {"k": None}, False),
    (Exists("k"), {}, False),
    # lists match where an element does
    (Eq("k", "x"), {"k": ["y", "x"]}, True),
    (Eq("k", "x"), {"k": [["x"]]}, False),
    (Eq("k", "x"), {"k": [{"k": "x"}]}, False),
    (Eq("k", 2), {"k": [1, 2.0]}, True),
    (Eq("k", 1), {"k": [True]}, False),
    (Eq("k", True), {"k": [False, True]}, True),
    (Ne("k", "x"), {"k": ["y", "x"]}, False),
    (Ne("k", "x"), {"k": ["y", "z"]}, True),
    (In("k", ["a", "b"]), {"k": ["z", "b"]}, True),
    (Range("k", gt=3), {"k": [1, 5]}, True),
    (Range("k", gt=2, lt=4), {"k": [1, 5]}, False),
    (Range("k", gt=3), {"k": [[5]]}, False),
    # one of several
    (In("k", ["x", "y"]), {"k": "y"}, True),
    (In("k", ["x", "y"]), {"k": "z"}, False),
    (In("k", []), {"k": "x"}, False),
    (In("k", []), {}, False),
    (Not(In("k", [])), {}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": "1"}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": 2.0}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": 2.5}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": True}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": 2**60}, True),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": 1}, False),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": False}, False),
    (In("k", ["1", 2, 2.5, True, 2**60]), {"k": None}, False),
    # ranges are about numbers
    (Range("k", gt=1), {"k": 1}, False),
    (Range("k", gt=1), {"k": 1.0000001}, True),
    (Range("k", gte=1), {"k": 1}, True),
    (Range("k", lt=1), {"k": 1.0}, False),
    (Range("k", lt=1), {"k": -(2**63)}, True),
    (Range("k", lte=1), {"k": 1.0}, True),
    (Range("k", gte=-0.5, lt=0.5), {"k": 0}, True),
    (Range("k", gte=0.5, lt=1.5), {"k": 1}, True),
    (Range("k", gte=1.5, lte=1.7), {"k": 1}, False),
    (Range("k", gt=2, lt=1), {"k": 1.5}, False),
    (Range("k", gte=1e300), {"k": 1e301}, True),
    (Range("k", gt=0, lt=1e-300), {"k": 1e-301}, True),
    (Range("k", gt=1.23456789012345e-12), {"k": 1.23456789012345e-12}, False),
    (Range("k", lt=1.23456789012345e-12), {"k": 1.23456789012345e-12}, False),
    (Range("k", gt=1.23456789012345e-12), {"k": 1.23456789012346e-12}, True),
    (Range("k", gte=1), {"k": "1"}, False),
    (Range("k", gte=0), {"k": True}, False),
    (Range("k", gte=0), {"k": None}, False),
    (Range("k", gte=0), {}, False),
    (Range("k", gte=0), {"k": {"k": 1}}, False),
    (Not(Range("k", gte=0)), {}, True),
    # ranges of moments
    (Range("k", gte="2024-01-01"), {"k": "2024-01-01t00:00:00z"}, True),
    (Range("k", gte="2024-01-01"), {"k": "2024-01-01T01:00:00+01:00"}, True),
    (Range("k", gt="2024-01-01"), {"k": "2024-01-01T01:00:00+01:00"}, False),
    (Range("k", lt="2024-01-01"), {"k": "2024-01-01T23:58:00+23:59"}, True),
    (Range("k", lt="1899-12-31T23:40:29"), {"k": "1900-01-01T00:00:00+00:19:32"}, True),
    (Range("k", lt="1899-12-31T23:40:28"), {"k": "1900-01-01T00:00:00+00:19:32"}, False),
    (Range("k", lt="0001-01-01"), {"k": "0001-01-01T00:00:00+05:00"}, True),
    (Range("k", gt="9999-12-31T23:59:59"), {"k": "9999-12-31T23:59:59-05:00"}, True),
    (Range("k", gte="0001-01-01"), {"k": "2024-01-01T00:00:00+24:00"}, False),
    (Range("k", gte="0001-01-01"), {"k": "٢٠٢٤-01-01"}, False),
    # ids
    (HasId([ID]), {}, True),
    (HasId(["other", ID]), {}, True),
    (HasId(["other"]), {}, False),
    (HasId([]), {}, False),
    (Not(HasId([ID])), {}, False),
    # connectives
    (And(), {}, True),
    (Or(), {}, False),
    (Not(And()), {}, False),
    (Not(Or()), {}, True),
    (And(Or()), {}, False),
    (Or(And()), {}, True),
    (Or(Or(), And()), {}, True),
    (And(Eq("a", 1), Eq("b", 2)), {"a": 1, "b": 2}, True),
    (And(Eq("a", 1), Eq("b", 2)), {"a": 1}, False),
    (Or(Eq("a", 1), Eq("b", 2)), {"b": 2}, True),
    (Or(Eq("a", 1), Eq("b", 2)), {"a": 2, "b": 1}, False),
    (Not(Eq("a", 1)), {"a": 1}, False),
    (Not(Eq("a", 1)), {}, True),
    (Not(Not(Eq("a", 1))), {"a": 1}, True),
    (Not(And(Eq("a", 1), Eq("b", 2))), {"a": 1}, True),
    (Not(Or(Eq("a", 1), Eq("b", 2))), {"a": 1}, False),
    (And(Not(Exists("a")), Or(Eq("b", 1), And(Eq("c", 1), Ne("d", 1)))), {"c": 1}, True),
    (And(Not(Exists("a")), Or(Eq("b", 1), And(Eq("c", 1), Ne("d", 1)))), {"c": 1, "d": 1}, False),
    # where a field lies
    (Eq("a.b.c", 1), NESTED, True),
    (Exists("a.b"), NESTED, True),
    (Exists("a.b.c.d"), NESTED, False),
    (Exists("b"), NESTED, False),
    (Eq("a.b", 2), QUOTED, True),
    (Eq("a.b", 1), QUOTED, True),
    (Eq('"a.b"', 1), QUOTED, True),
    (Eq('a."c d"', 3), QUOTED, True),
    (Eq("a.c d", 3), QUOTED, True),
    (Eq('a.""', 4), QUOTED, True),
    (Eq('""', 5), QUOTED, True),
    (Eq('" "', 6), QUOTED, True),
    (Eq("日本 語", 7), QUOTED, True),
    (Eq("it's", 8), QUOTED, True),
    (Eq('"[0]"', 9), QUOTED, True),
    (Eq('"x[]"', 10), QUOTED, True),
    (Eq("list.k", 1), {"list": [{"k": 1}]}, True),  # no way leads through a list
    (Exists("list.k"), {"list": [{"k": 1}]}, True),
    (Eq("list.0", 1), {"list": [1]}, False),
]


@pytest.mark.parametrize(("filter", "metadata", "expected"), CASES)
def test_what_a_filter_means(filter: Filter, metadata: dict[str, Any], expected: bool) -> None:
    assert matches(filter, ID, metadata) is expected
    assert holds(filter, ID, metadata) is expected


def test_every_engine_means_the_same(make: Make) -> None:
    driver = make(PLAIN)
    wrong = []
    for filter, metadata, expected in CASES:
        driver.call("upsert", batch([Row(ID, metadata=metadata)], PLAIN))
        if driver.call("count", filter) != expected:
            wrong.append((filter, metadata, expected))
    assert wrong == []


DECLARED = StoreConfig(
    fingerprint="f",
    dim=4,
    fields={"s": "keyword", "i": "integer", "f": "float", "b": "bool", 'o."a b"': "keyword"},
)
ROWS: list[dict[str, Any]] = [
    {},
    {"s": None, "i": None, "f": [], "b": [None], "o": {}},
    {"s": "x", "i": 1, "f": 1, "b": True, "o": {"a b": "x"}},
    {"s": ["x", "y"], "i": [1, 2], "f": [1.5, 2], "b": [True, False], "o": {"a b": ["y"]}},
    {"s": "", "i": 0, "f": -0.0, "b": False, "o": {"a b": ""}},
    {"s": "1", "i": 2**53 + 1, "f": 1e-300, "o": {"a c": "x"}},
    {"s": "true", "i": -(2**63), "f": 2**53},
    {"i": 2**63 - 1, "f": 1 / 3},
]
QUESTIONS: list[tuple[Filter, list[int]]] = [
    (Eq("s", "x"), [2, 3]),
    (Eq("s", "true"), [6]),
    (Eq("s", 1), []),
    (Ne("s", "x"), [0, 1, 4, 5, 6, 7]),
    (In("s", ["", "y"]), [3, 4]),
    (Exists("s"), [2, 3, 4, 5, 6]),
    (Eq("i", 1), [2, 3]),
    (Eq("i", 1.0), [2, 3]),
    (Eq("i", True), []),
    (Eq("i", 1.5), []),
    (Eq("i", 2**53), []),
    (Eq("i", 2**53 + 1), [5]),
    (Eq("i", 2**63 - 1), [7]),
    (In("i", [2, -(2**63), "1"]), [3, 6]),
    (Range("i", gt=0.5, lt=1.5), [2, 3]),
    (Range("i", gte=1.5), [3, 5, 7]),
    (Range("i", lte=0), [4, 6]),
    (Exists("i"), [2, 3, 4, 5, 6, 7]),
    (Eq("f", 1), [2]),
    (Eq("f", 0), [4]),
    (Eq("f", 1 / 3), [7]),
    (Eq("f", 1e-300), [5]),
    (Eq("f", 2**53), [6]),
    (Range("f", gt=0), [2, 3, 5, 6, 7]),
    (Range("f", gt=1.5), [3, 6]),
    (Range("f", gt=1.4, lt=1.6), [3]),
    (Exists("f"), [2, 3, 4, 5, 6, 7]),
    (Eq("b", True), [2, 3]),
    (Eq("b", False), [3, 4]),
    (Eq("b", 1), []),
    (Ne("b", True), [0, 1, 4, 5, 6, 7]),
    (Exists("b"), [1, 2, 3, 4]),
    (Eq('o."a b"', "x"), [2]),
    (Exists("o.a b"), [2, 3, 4]),
    (Exists("o"), [1, 2, 3, 4, 5]),
]


def test_declared_fields_change_no_answer(make: Make) -> None:
    driver = make(DECLARED)
    rows = [Row(str(i), metadata=metadata) for i, metadata in enumerate(ROWS)]
    driver.call("upsert", batch(rows, DECLARED))
    for _ in range(2):
        for filter, expected in QUESTIONS:
            page, _ = driver.call("scroll", filter=filter)
            assert (filter, sorted(int(r.id) for r in page)) == (filter, expected)
        driver.reopen()


@pytest.mark.parametrize("field", ["o.i", 'o."i"', '"o.i"', "o[].i"])
def test_no_integer_is_above_all_by_any_spelling_of_a_declared_field(make: Make, field: str) -> None:
    declared = StoreConfig(fingerprint="f", dim=4, sparse=False, fields={"o.i": "integer"})
    driver = make(declared)
    rows: list[dict[str, Any]] = [{"o": {"i": 2**63 - 1}}, {"o.i": 2**63 - 1}, {"o": [{"i": 2**63 - 1}]}]
    driver.call("upsert", batch([Row(str(i), metadata=metadata) for i, metadata in enumerate(rows)], declared))
    for filter in (Eq(field, 1e300), Range(field, gte=1e19), In(field, [1e300, -1e300])):
        assert driver.call("count", filter) == 0, filter
    assert driver.call("count", Range(field, lt=1e19)) >= 1


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ("a", ("a",)),
        ("a[]", ("a",)),
        ("a[].b", ("a", "b")),
        ("a.b", ("a", "b")),
        ('"a.b"', ("a.b",)),
        ('a."b.c".d', ("a", "b.c", "d")),
        ('""', ("",)),
        ("a b", ("a b",)),
        ("日本", ("日本",)),
    ],
)
def test_fields(field: str, keys: tuple[str, ...]) -> None:
    assert tuple(part.key for part in parse_field(field)) == keys


@pytest.mark.parametrize(
    "field",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        '"',
        '"a',
        'a"',
        '"a"b',
        'a"b"',
        "a[0]",
        "a\\b",
        '"a\\b"',
        '"a"."b',
        "\ud800",
        1,
        None,
        b"a",
    ],
)
def test_what_is_no_field(field: Any) -> None:
    for make in (lambda: Eq(field, 1), lambda: Ne(field, 1), lambda: In(field, [1]), lambda: Exists(field)):
        with pytest.raises(FilterError, match="is not a field"):
            make()
    with pytest.raises(FilterError, match="is not a field"):
        Range(field, gt=1)


@pytest.mark.parametrize(
    "value",
    [None, math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, [], {}, b"x", 1j, "\ud800", np.int64(1), np.bool_(True)],
)
def test_what_nothing_can_equal(value: Any) -> None:
    for make in (lambda: Eq("k", value), lambda: Ne("k", value), lambda: In("k", ["x", value])):
        with pytest.raises(FilterError, match="cannot compare"):
            make()


@pytest.mark.parametrize(
    "bound",
    ["2024-13-01", "2024-01-01T00:00:00.000000001", True, math.nan, math.inf, -math.inf, 10**400, [1], np.float32(1)],
)
def test_what_is_no_bound(bound: Any) -> None:
    with pytest.raises(FilterError, match="must be a finite number"):
        Range("k", gte=0, lt=bound)


def test_a_range_has_bounds() -> None:
    with pytest.raises(FilterError, match="at least one"):
        Range("k")


@pytest.mark.parametrize("values", ["xyz", {"x": 1}, 5, None])
def test_values_and_ids_are_lists(values: Any) -> None:
    with pytest.raises(FilterError, match="list of values"):
        In("k", values)
    with pytest.raises(FilterError, match="list of ids"):
        HasId(values)


@pytest.mark.parametrize("id", [1, None, "\udfff", b"x"])
def test_ids_are_strings(id: Any) -> None:
    with pytest.raises(FilterError, match="is not an id"):
        HasId(["a", id])


@pytest.mark.parametrize("part", [None, {"k": 1}, "k = 1", Eq, True])
def test_connectives_join_filters(part: Any) -> None:
    for make in (lambda: And(Exists("a"), part), lambda: Or(part), lambda: Not(part)):
        with pytest.raises(FilterError, match="expected a filter"):
            make()


def nested(kind: Any, depth: int) -> Filter:
    filter: Filter = Ne("k", "x")
    for _ in range(depth - 1):
        filter = kind(filter)
    return filter


@pytest.mark.parametrize("kind", [And, Or, Not])
def test_filters_as_deep_as_allowed_can_be_replayed_and_deeper_ones_are_refused(make: Make, kind: Any) -> None:
    driver = make(PLAIN)
    driver.call("upsert", batch([Row("a", metadata={"k": "x"}), Row("b", metadata={"k": "y"})], PLAIN))
    allowed = nested(kind, 32)
    assert driver.call("count", allowed) == 1
    driver.call("delete", filter=And(HasId(["nobody"]), nested(kind, 31)))
    with pytest.raises(FilterError, match="nested"):
        driver.call("delete", filter=kind(allowed))
    with pytest.raises(FilterError, match="nested"):
        nested(kind, 60)
    driver.reopen()
    assert driver.call("count") == 2

"""Random filters on every engine, on declared and undeclared fields, against the words of the documentation."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from stores.conftest import Make
from stores.oracle import Oracle, Row, batch, dense_query, holds, sparse_query
from twinvec_stores.config import StoreConfig
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
from twinvec_stores.records import StoreQuery

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes")
FILTERS = int(os.environ.get("TWINVEC_TEST_FILTERS", "300"))  # make fuzz-filters: 2,000
SEED = int(os.environ.get("TWINVEC_TEST_SEED", "20261128"))
CONFIG = StoreConfig(
    fingerprint="f",
    dim=4,
    fields={
        "s": "keyword",
        "i": "integer",
        "f": "float",
        "b": "bool",
        "day": "datetime",
        "body": "text",
        "o.k": "keyword",
        "o.i": "integer",
        "o.day": "datetime",
    },
)
NANOSECONDS = 1732569600123456789
WHOLE = [
    *(0, 1, -1, 2, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1, 2**63 - 1, 2**63 - 2, -(2**63)),
    *(NANOSECONDS + n for n in (-300, -257, -2, -1, 0, 1, 2, 255, 300)),
]
FLOATS = [0.0, -0.5, 0.1 + 0.2, 0.3, 1.0, 1.5, 2.5, 1e300, -1e300, 1e-9, 9.5e14]
STRINGS = ["", "x", "X", "apple", "Apple pie", "apple pie, red", "1", "true", "pie"]
DAYS = [
    *("2024-01-01", "2024-01-01T00:00:00Z", "2024-01-01T02:00:00+03:00", "2025-06-01T12:00:00+03:00"),
    *("2025-06-01T09:00:00", "2025-06-01 09:00:00.000001", "0001-01-01", "9999-12-31T23:59:59.999999"),
    *("0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-23:59"),
]
COMMON: list[Any] = [1, 1.0, 1e300, True, "x", 2**53, float(2**60)]
POOLS: dict[str, list[Any]] = {
    "s": STRINGS,
    "i": WHOLE,
    "f": [*FLOATS, 1, 2],
    "b": [True, False],
    "day": DAYS,
    "body": STRINGS,
    "us": STRINGS,
    "ui": WHOLE,
    "uf": FLOATS,
    "um": [*STRINGS[:3], *FLOATS[:5], 0, 1, True, False],
    "uday": [*DAYS, "no day", "2025-06-01T09:00:00+24:00"],
}


NESTED = {"o.k": "s", "o.i": "i", "o.day": "day", '"o.k"': "s", "o[].k": "s", "o[].i": "i", "o[].day": "day"}


def value_of(name: str, draw: random.Random) -> Any:
    pool = POOLS[name]
    kind = draw.random()
    return None if kind < 0.1 else draw.choices(pool, k=draw.randrange(4)) if kind < 0.3 else draw.choice(pool)


def metadata(draw: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {name: value_of(name, draw) for name in POOLS if draw.random() < 0.7}
    inner = {"k": "s", "i": "i", "day": "day"}
    shape = draw.randrange(4)
    if shape == 0:
        made["o"] = {key: value_of(kind, draw) for key, kind in inner.items()}
    elif shape == 1:
        made["o"] = [{key: value_of(kind, draw) for key, kind in inner.items()} for _ in range(draw.randrange(3))]
    elif shape == 2:
        made |= {f"o.{key}": value_of(kind, draw) for key, kind in inner.items()}
    return made


def leaf(draw: random.Random) -> Filter:
    name = draw.choice([*POOLS, *NESTED])
    pool = POOLS[NESTED.get(name, name)]
    text = draw.choice(["p", "apple", "X", "pie", "le p"])
    makes: list[Callable[[], Filter]] = [
        lambda: Eq(name, draw.choice(pool)),
        lambda: Eq(name, draw.choice(COMMON)),
        lambda: In(name, draw.choices(pool, k=3)),
        lambda: Exists(name),
        lambda: Contains(name, text, case_sensitive=draw.random() < 0.6),
        lambda: StartsWith(name, text, case_sensitive=draw.random() < 0.6),
        lambda: HasWords(name, draw.choice(["apple", "PIE apple", "red", "x"])),
        lambda: Range(name, **bounds(DAYS, draw)),
        *[lambda: Range(name, **bounds([*WHOLE, *FLOATS, float(2**60), -1e19, 1e19], draw))] * 3,
    ]
    return draw.choice(makes)()


def bounds(pool: list[Any], draw: random.Random) -> dict[str, Any]:
    return {name: draw.choice(pool) for name in draw.sample(["gt", "gte", "lt", "lte"], draw.randint(1, 3))}


def condition(draw: random.Random, depth: int = 2) -> Filter:
    kind = draw.random()
    if depth == 0 or kind < 0.6:
        return leaf(draw)
    parts = [condition(draw, depth - 1) for _ in range(2)]
    return And(*parts) if kind < 0.75 else Or(*parts) if kind < 0.9 else Not(parts[0])


def halves(draw: random.Random) -> tuple[float, ...]:
    """Length 1, and products that every engine gets exactly, so that equal scores are common."""
    return tuple(draw.choice((-0.5, 0.5)) for _ in range(4))


def weights(draw: random.Random, most: int) -> dict[int, float]:
    return {key: float(draw.randint(1, 3)) for key in draw.sample(range(9), draw.randint(1, most))}


def test_random_filters_find_what_they_say(make: Make) -> None:
    draw = random.Random(SEED)
    rows = [Row(str(i), metadata=metadata(draw), dense=halves(draw), sparse=weights(draw, 5)) for i in range(150)]
    driver, oracle = make(CONFIG), Oracle(CONFIG)
    driver.call("upsert", batch(rows, CONFIG))
    oracle.upsert(rows)
    wrong: list[Any] = []
    for _ in range(FILTERS):
        filter = condition(draw)
        expected = sorted(row.id for row in rows if holds(filter, row.id, row.metadata))
        page, cursor = driver.call("scroll", filter=filter, limit=1000)
        assert cursor is None
        if sorted(record.id for record in page) != expected or driver.call("count", filter) != len(expected):
            found = {record.id for record in page}
            other = next(iter(found.symmetric_difference(expected)), None)
            wrong.append((filter, other, next((row.metadata for row in rows if row.id == other), None)))
        queries: list[StoreQuery] = [dense_query(*halves(draw)), sparse_query(weights(draw, 3))]
        limit = draw.choice([1, 5, 200])
        answers = [oracle.search(query, limit, filter) for query in queries]
        if driver.call("search", queries, limit=limit, filter=filter) != answers:
            wrong.append((filter, limit, queries))
    assert wrong == []


def test_declared_and_undeclared_integers_have_one_meaning(make: Make) -> None:
    draw = random.Random(17)
    declared = StoreConfig(fingerprint="f", dim=4, sparse=False, fields={"d": "integer"})
    driver = make(declared)
    numbers = [n + d for n in (2**53, 2**60, NANOSECONDS, -NANOSECONDS, 2**63 - 600) for d in range(-520, 521, 40)]
    numbers = [n for n in numbers if n < 2**63]
    driver.call("upsert", batch([Row(str(n), metadata={"d": n, "u": n}) for n in numbers], declared))
    for _ in range(FILTERS):
        given = bounds([*numbers, *(n + draw.randint(-3, 3) for n in numbers if abs(n) < 2**62)], draw)
        expected = sorted(n for n in numbers if holds(Range("d", **given), "", {"d": n}))
        for field in ("d", "u"):
            page, _ = driver.call("scroll", filter=Range(field, **given), limit=1000)
            assert (given, field, sorted(r.metadata["d"] for r in page)) == (given, field, expected)

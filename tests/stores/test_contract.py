"""What every store has to do: each engine, and its async twins, against one oracle."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores.conftest import Make
from stores.oracle import Driver, Oracle, Row, batch, dense_query, row, sparse_query
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Eq, Exists, Filter, HasId, In, Ne, Not, Or, Range
from twinvec_stores.protocol import everything
from twinvec_stores.records import StoreQuery

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

BOTH = StoreConfig(
    fingerprint="f",
    dim=4,
    idf=True,
    fields={"kw": "keyword", "deep.n": "integer", '"f.l"': "float", "flag": "bool", '"k w"': "keyword"},
)
DENSE = StoreConfig(fingerprint="f", dim=4, sparse=False)
SPARSE = StoreConfig(fingerprint="f")
STATED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# metadata: few keys and values, so that filters meet them
KEYS = ["a", "b", "a.b", "a b", "é", "日本", "it's", "x-1", "0", "", "$", "[0]", "*", "\n", "٣"]
STRINGS = st.sampled_from(["", "x", "X", "é", "1", "true"]) | st.text(max_size=4)
WHOLE = st.sampled_from([0, 1, -1, 2, 3, 2**31, -(2**53) + 1])
WIDE = st.sampled_from([2**53, 2**60, 2**60 + 1, -(2**63), 2**63 - 1])
FRACTIONS = st.one_of(
    st.sampled_from([0.5, 1.0, -0.0, 1.5, -1.0, 0.1]),
    st.sampled_from(
        [1 / 3, 1.2345678901234567e-9, -1.23456789012345e-9, 1e300, 1e-300, 1.7976931348623157e308, 5e-324]
    ),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
)
SCALARS = STRINGS | WHOLE | WIDE | FRACTIONS | st.booleans()
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)


def one_or_more(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values | st.lists(values | st.none(), max_size=3) | st.none()


DECLARED = st.fixed_dictionaries(
    {},
    optional={
        "kw": one_or_more(STRINGS),
        "deep": st.fixed_dictionaries({}, optional={"n": one_or_more(WHOLE | WIDE), "other": VALUES}),
        "f.l": one_or_more(FRACTIONS | WHOLE | WIDE),
        "flag": one_or_more(st.booleans()),
        "k w": one_or_more(STRINGS),
    },
)
METADATA = st.builds(lambda a, b: {**a, **b}, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), DECLARED)


def spelled(*keys: str) -> str:
    return ".".join(key if key and not set(key) & set('."[]') else f'"{key}"' for key in keys)


FIELDS = st.sampled_from(["kw", "deep.n", "deep.other", '"f.l"', "flag", '"k w"', "k w", "nothing"]) | st.lists(
    st.sampled_from(KEYS), min_size=1, max_size=2
).map(lambda keys: spelled(*keys))
BOUNDS = st.none() | WHOLE | FRACTIONS
RANGES = (
    st.fixed_dictionaries({"field": FIELDS, "gt": BOUNDS, "gte": BOUNDS, "lt": BOUNDS, "lte": BOUNDS})
    .filter(lambda given: any(v is not None for k, v in given.items() if k != "field"))
    .map(lambda given: Range(**cast(Any, given)))
)


def paths_in(value: Any, *keys: str) -> list[tuple[str, Any]]:
    """Every field of a record, with each of its values."""
    found = [(spelled(*keys), v) for v in (value if isinstance(value, list) else [value])] if keys else []
    if keys and value == []:
        found.append((spelled(*keys), None))
    if isinstance(value, dict):
        found += [pair for key, inner in value.items() for pair in paths_in(inner, *keys, key)]
    return found


def twins(value: Any) -> list[Any]:
    """A value, and what might be taken for it."""
    if isinstance(value, bool):
        return [value, not value, int(value), float(value), str(value).lower()]
    if isinstance(value, int) and abs(value) < 2**53:
        return [value, float(value), bool(value), value + 1, str(value)]
    if isinstance(value, int):
        return [value, value - 1 if value > 0 else value + 1]
    if isinstance(value, float):
        return [value, *([int(value), bool(value)] if value in (0, 1) else []), value / 2]
    return [value, value.upper(), value + " "]


def scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def narrow(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53


def sweep(rows: list[Row]) -> Iterator[Filter]:
    """One condition of each kind about every field, and every value near to one that it has."""
    values = {(field, repr(value)): value for row in rows for field, value in paths_in(row.metadata)}
    for field in dict.fromkeys(field for field, _ in values):
        yield Exists(field)
    for (field, _), value in values.items():
        for twin in twins(value) if scalar(value) else []:
            yield Eq(field, twin)
            if narrow(twin):
                yield Range(field, gte=twin)
                yield Range(field, lt=twin)


def filters(ids: st.SearchStrategy[str], rows: list[Row]) -> st.SearchStrategy[Filter]:
    """Filters, most of them about fields and values that the rows have, or nearly have."""
    paths = [pair for row in rows for pair in paths_in(row.metadata)] or [("kw", "x")]
    near = [(field, twin) for field, value in paths if scalar(value) for twin in twins(value)] or [("kw", "x")]
    bounded = [(field, value) for field, value in near if narrow(value)] or [("deep.n", 0)]
    fields = st.sampled_from([field for field, _ in paths]) | FIELDS
    pairs = st.sampled_from(near) | st.tuples(fields, SCALARS)
    leaves: st.SearchStrategy[Filter] = st.one_of(
        pairs.map(lambda pair: Eq(*pair)),
        pairs.map(lambda pair: Ne(*pair)),
        st.builds(lambda pair, more: In(pair[0], [pair[1], *more]), pairs, st.lists(SCALARS, max_size=2)),
        st.builds(In, fields, st.lists(SCALARS, max_size=2)),
        st.builds(
            lambda pair, names: Range(pair[0], **dict.fromkeys(names, pair[1])),
            st.sampled_from(bounded),
            st.lists(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1, max_size=2),
        ),
        RANGES,
        st.builds(Exists, fields),
        st.builds(HasId, st.lists(ids, max_size=3)),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.lists(inner, max_size=3).map(lambda of: And(*of)),
            st.lists(inner, max_size=3).map(lambda of: Or(*of)),
        ),
        max_leaves=4,
    )


# vectors of length 1 whose products float32 holds exactly, so that ties are ties
SIGNS = st.sampled_from([-1.0, 1.0])
UNITS = st.one_of(
    st.tuples(st.integers(0, 3), SIGNS).map(lambda at: tuple(at[1] if i == at[0] else 0.0 for i in range(4))),
    st.tuples(SIGNS, SIGNS, SIGNS, SIGNS).map(lambda signs: tuple(s / 2 for s in signs)),
)
TERMS = [0, 1, 2, 3, 30_000, 2**31 - 1]
WEIGHTS = st.dictionaries(st.sampled_from(TERMS), st.sampled_from([0.25, 0.5, 1.0, 2.0]), max_size=4)
DENSE_QUERIES = UNITS.map(lambda v: dense_query(*v))
SPARSE_QUERIES = WEIGHTS.map(sparse_query)
UNKNOWN_ID = "an id that no record has"


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, Any]], list[Filter]]:
    """Ids, what happens to the store, and filters to ask with."""
    ids = draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
    known = st.sampled_from(ids)
    rows = st.builds(
        Row,
        id=known,
        text=st.text(max_size=8),
        metadata=METADATA,
        provenance=st.dictionaries(st.text(max_size=3), VALUES, max_size=1),
        dense=UNITS,
        sparse=WEIGHTS,
    )
    events: list[tuple[str, Any]] = [("upsert", draw(st.lists(rows, min_size=1, max_size=8)))]
    chosen = filters(known, events[0][1])
    for kind in draw(st.lists(st.sampled_from(["upsert", "upsert", "delete", "delete_where", "reopen"]), max_size=4)):
        if kind == "upsert":
            events.append((kind, draw(st.lists(rows, max_size=6))))
        elif kind == "delete":
            events.append((kind, draw(st.lists(known, max_size=3))))
        else:
            events.append((kind, draw(chosen) if kind == "delete_where" else None))
    return ids, events, draw(st.lists(chosen, min_size=3, max_size=6))


def play(driver: Driver, events: list[tuple[str, Any]]) -> Oracle:
    oracle = Oracle(driver.config)
    for kind, what in events:
        if kind == "upsert":
            driver.call("upsert", batch(what, driver.config))
            oracle.upsert(what)
        elif kind == "delete":
            driver.call("delete", what)
            oracle.delete(what)
        elif kind == "delete_where":
            driver.call("delete", filter=what)
            oracle.delete_where(what)
        else:
            driver.reopen()
        query: StoreQuery = dense_query(1, 0, 0, 0) if driver.config.dim else sparse_query({1: 1.0})
        check_rankings(driver, oracle, [query], 3, None, exact=True)
    return oracle


def scrolled(driver: Driver, limit: int, filter: Filter | None, *, with_vectors: bool) -> list[Row]:
    rows: list[Row] = []
    cursor = None
    while True:
        page, cursor = driver.call("scroll", cursor, limit=limit, filter=filter, with_vectors=with_vectors)
        rows += map(row, page)
        # only an engine that leaves a filter to us may have shorter pages
        assert len(page) == limit or cursor is None or driver.store._hard(everything(filter))
        if cursor is None:
            return rows


def check_contents(driver: Driver, oracle: Oracle, ids: list[str], filters: list[Filter], limit: int) -> None:
    asked = [*ids, UNKNOWN_ID, *reversed(ids)]
    there = [oracle.rows[id] for id in ids if id in oracle.rows]
    assert [row(r) for r in driver.call("get", asked, with_vectors=True)] == [oracle.stored(r) for r in there]
    bare = [(r.text, r.metadata, r.provenance, r.dense, r.sparse) for r in driver.call("get", ids)]
    assert bare == [(r.text, r.metadata, r.provenance, None, None) for r in there]
    assert driver.call("count") == len(oracle.rows)
    for filter in islice(sweep(list(oracle.rows.values())), 100):
        assert (filter, driver.call("count", filter)) == (filter, len(oracle.matching(filter)))
    for filter in filters:
        matching = oracle.matching(filter)
        assert driver.call("count", filter) == len(matching)
        found = scrolled(driver, limit, filter, with_vectors=True)
        assert sorted(found, key=lambda r: r.id) == sorted(map(oracle.stored, matching), key=lambda r: r.id)
    assert sorted(r.id for r in scrolled(driver, limit, None, with_vectors=False)) == sorted(oracle.rows)


def check_rankings(
    driver: Driver, oracle: Oracle, queries: list[StoreQuery], limit: int, filter: Filter | None, exact: bool
) -> None:
    rankings = driver.call("search", queries, limit=limit, filter=filter, exact=exact)
    assert len(rankings) == len(queries)
    for query, ranking in zip(queries, rankings, strict=True):
        expected = oracle.search(query, limit, And() if filter is None else filter)
        assert [hit.id for hit in ranking] == [hit.id for hit in expected]
        assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def check_story(
    driver: Driver,
    story: tuple[list[str], list[tuple[str, Any]], list[Filter]],
    queries: list[StoreQuery],
    limit: int,
    page: int,
    exact: bool,
) -> None:
    ids, events, asked = story
    oracle = play(driver, events)
    check_contents(driver, oracle, ids, asked, page)
    for filter in (None, *asked):
        check_rankings(driver, oracle, queries, limit, filter, exact)
    if driver.config.idf:
        terms = np.array([*TERMS, 77], np.int32)
        frequencies = driver.call("document_frequencies", terms)
        assert str(frequencies.dtype) == "int64"
        assert frequencies.tolist() == [oracle.frequency(term) for term in terms.tolist()]


QUESTIONS = {
    "story": stories(),
    "limit": st.integers(1, 4) | st.sampled_from([5, 17, 1000, 10**6]),
    "page": st.integers(1, 5) | st.just(10_000),
    "exact": st.booleans(),
}


@settings(STATED, max_examples=40)
@given(queries=st.lists(DENSE_QUERIES | SPARSE_QUERIES, max_size=4), **QUESTIONS)
def test_the_same_answers_as_the_oracle(make: Make, **questions: Any) -> None:
    check_story(make(BOTH), **questions)


@settings(STATED, max_examples=12)
@given(queries=st.lists(DENSE_QUERIES | SPARSE_QUERIES, max_size=4), **QUESTIONS)
def test_async_methods_give_the_same_answers(make_async: Make, **questions: Any) -> None:
    check_story(make_async(BOTH), **questions)


@settings(STATED, max_examples=10)
@given(queries=st.lists(DENSE_QUERIES, max_size=2), **QUESTIONS)
def test_a_store_without_sparse_vectors(make: Make, **questions: Any) -> None:
    check_story(make(DENSE), **questions)


@settings(STATED, max_examples=10)
@given(queries=st.lists(SPARSE_QUERIES, max_size=2), **QUESTIONS)
def test_a_store_without_dense_vectors(make: Make, **questions: Any) -> None:
    check_story(make(SPARSE), **questions)

"""What every store has to do: each engine, and its async twins, against one oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores.conftest import Make
from stores.oracle import Driver, Oracle, Row, batch, dense_query, row, sparse_query
from twinvec.errors import ConfigurationError, FilterError
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Eq, Exists, Filter, HasId, In, Ne, Not, Or, Range
from twinvec_stores.records import Record, StoreQuery

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
        assert len(page) == limit or cursor is None
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


def test_ties_go_by_id_however_many_there_are(make: Make) -> None:
    driver = make(BOTH)
    ids = [f"{i:03}" for i in range(300)]
    np.random.default_rng(0).shuffle(ids)
    rows = [Row(id, metadata={"half": int(id) % 2}, sparse={7: 1.0}) for id in ids]
    rows += [Row("better", sparse={7: 2.0}), Row("worse", dense=(0.5, 0.5, 0.5, 0.5), sparse={7: 0.5})]
    for start in range(0, len(rows), 50):
        driver.call("upsert", batch(rows[start : start + 50], BOTH))
    queries = [dense_query(1, 0, 0, 0), sparse_query({7: 1.0})]
    dense, sparse = driver.call("search", queries, limit=5)
    assert [hit.id for hit in dense] == ["000", "001", "002", "003", "004"]
    assert [hit.id for hit in sparse] == ["better", "000", "001", "002", "003"]
    dense, sparse = driver.call("search", queries, limit=30, filter=Eq("half", 1))
    assert [hit.id for hit in dense] == [hit.id for hit in sparse] == [f"{i:03}" for i in range(1, 60, 2)]
    dense, _ = driver.call("search", queries, limit=302)
    assert [hit.id for hit in dense] == [*sorted(ids), "better", "worse"]


def test_random_vectors_rank_by_their_products(make: Make) -> None:
    config = StoreConfig(fingerprint="f", dim=24)
    generator = np.random.default_rng(1)
    dense = generator.normal(size=(400, 24))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    weights = generator.exponential(size=(400, 50)) * (generator.random((400, 50)) < 0.3)
    rows = [
        Row(f"r{i}", dense=tuple(dense[i]), sparse={j: w for j, w in enumerate(weights[i].tolist()) if w})
        for i in range(400)
    ]
    driver = make(config)
    driver.call("upsert", batch(rows, config))
    query, terms = generator.normal(size=24), {3: 0.7, 11: 1.3, 40: 0.2}
    found = driver.call("search", [dense_query(*query), sparse_query(terms)], limit=50)
    exact = [dense @ (query / np.linalg.norm(query)), sum(weights[:, key] * weight for key, weight in terms.items())]
    for hits, scores in zip(found, exact, strict=True):
        best = sorted(scores, reverse=True)[:50]
        assert len({hit.id for hit in hits}) == 50
        for hit, score in zip(hits, best, strict=True):  # the ids are right but for near ties
            assert hit.score == pytest.approx(score, abs=1e-5)
            assert scores[int(hit.id[1:])] == pytest.approx(score, abs=1e-5)


def test_dense_vectors_and_queries_are_brought_to_length_one(make: Make) -> None:
    driver = make(DENSE)
    driver.call("upsert", batch([Row("a", dense=(3.0, 0.0, 4.0, 0.0)), Row("b", dense=(0.0, 1e-30, 0.0, 0.0))], DENSE))
    a, b = driver.call("get", ["a", "b"], with_vectors=True)
    assert a.dense.tolist() == pytest.approx([0.6, 0, 0.8, 0])
    assert b.dense.tolist() == [0, 1, 0, 0]
    assert [str(a.dense.dtype), a.sparse] == ["float32", None]
    [hits] = driver.call("search", [dense_query(1e10, 0, 0, 0)], limit=2)
    assert [hit.id for hit in hits] == ["a", "b"]
    assert [type(hit.score) for hit in hits] == [float, float]
    assert [hit.score for hit in hits] == pytest.approx([0.6, 0])


def test_of_equal_ids_in_one_batch_the_last_is_kept(make: Make) -> None:
    driver = make(BOTH)
    driver.call("upsert", batch([Row("a", "1"), Row("b", "2", sparse={1: 1.0}), Row("a", "3", sparse={2: 1.0})], BOTH))
    assert driver.call("count") == 2
    assert [r.text for r in driver.call("get", ["a", "b"])] == ["3", "2"]
    assert driver.call("document_frequencies", np.array([1, 2], np.int32)).tolist() == [1, 1]


def test_a_replaced_record_keeps_nothing_of_the_old_one(make: Make) -> None:
    driver = make(BOTH)
    driver.call("upsert", batch([Row("a", "old", {"kw": "x", "n": 1}, {"p": 1}, sparse={5: 1.0})], BOTH))
    new = Row("a", "", {"other": 1}, {}, (0.0, 0.0, 0.0, -1.0), {})
    driver.call("upsert", batch([new], BOTH))
    assert [row(r) for r in driver.call("get", ["a"], with_vectors=True)] == [new]
    assert driver.call("count", Eq("kw", "x")) == 0
    assert driver.call("search", [sparse_query({5: 1.0})], limit=5) == [[]]


def test_nothing_is_shared_with_the_caller(make: Make) -> None:
    driver = make(BOTH)
    given = batch([Row("a", metadata={"list": [1, {"x": 2}]}, sparse={5: 1.0})], BOTH)
    driver.call("upsert", given)
    assert given.metadata is not None
    assert given.dense is not None
    assert given.sparse is not None
    for _ in range(2):
        given.metadata[0]["list"][1]["x"] = 3
        given.dense[:] = 9
        given.sparse.values[:] = 9
        [given_back] = driver.call("get", ["a"], with_vectors=True)
        assert row(given_back) == Row("a", metadata={"list": [1, {"x": 2}]}, sparse={5: 1.0})
        given_back.metadata["list"].append(4)
        given_back.dense[:] = 9
        given_back.sparse.values[:] = 9


def test_nothing_to_do_is_no_error(make: Make) -> None:
    driver = make(BOTH)
    driver.call("upsert", batch([], BOTH))
    driver.call("delete", [])
    driver.call("delete", ["nobody"])
    driver.call("delete", filter=HasId([]))
    assert driver.call("get", []) == []
    assert driver.call("search", [], limit=3) == []
    assert driver.call("search", [dense_query(1, 0, 0, 0), sparse_query({1: 1.0})], limit=3) == [[], []]
    assert driver.call("scroll") == ([], None)
    assert driver.call("document_frequencies", np.zeros(0, np.int32)).tolist() == []
    driver.call("flush")
    driver.call("optimize")
    assert driver.call("info").records == 0


def test_a_scroll_sees_what_stays_once_while_others_come_and_go(make: Make) -> None:
    driver = make(BOTH)
    staying = [f"stays {i}" for i in range(40)]
    driver.call("upsert", batch([Row(id) for id in [*staying, *(f"goes {i}" for i in range(40))]], BOTH))
    seen: list[str] = []
    cursor, step = None, 0
    while True:
        page, cursor = driver.call("scroll", cursor, limit=7)
        seen += [r.id for r in page]
        driver.call("delete", [f"goes {i}" for i in range(3 * step, 3 * step + 3)])
        driver.call("upsert", batch([Row(f"comes {i}") for i in range(3 * step, 3 * step + 3)], BOTH))
        step += 1
        if cursor is None:
            break
    assert sorted(id for id in seen if id.startswith("stays")) == sorted(staying)
    assert len(seen) == len(set(seen))


def test_scroll_all_gives_every_page(make: Make) -> None:
    store = make(BOTH).store
    store.upsert(batch([Row(f"r{i}", metadata={"i": i}) for i in range(23)], BOTH))

    async def through_async() -> list[list[Record]]:
        return [page async for page in store.ascroll_all(limit=5, filter=Range("i", gte=3), with_vectors=True)]

    for pages in (store.scroll_all(limit=5, filter=Range("i", gte=3), with_vectors=True), asyncio.run(through_async())):
        given = list(pages)
        assert [len(page) for page in given] == [5, 5, 5, 5]
        assert {r.id for page in given for r in page} == {f"r{i}" for i in range(3, 23)}
        assert all(r.dense is not None for page in given for r in page)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3", None])
def test_limits_are_whole_and_positive(make: Make, limit: Any) -> None:
    driver = make(BOTH)
    with pytest.raises(ConfigurationError, match="an integer"):
        driver.call("search", [dense_query(1, 0, 0, 0)], limit=limit)
    with pytest.raises(ConfigurationError, match="an integer"):
        driver.call("scroll", limit=limit)


def test_misuse_is_refused(make: Make) -> None:
    driver = make(DENSE)
    with pytest.raises(ConfigurationError, match="10000"):
        driver.call("scroll", limit=10_001)
    with pytest.raises(ConfigurationError, match="either ids or filter="):
        driver.call("delete")
    with pytest.raises(ConfigurationError, match="either ids or filter="):
        driver.call("delete", ["a"], filter=And())
    with pytest.raises(ConfigurationError, match="idf"):
        driver.call("document_frequencies", np.array([1], np.int32))
    for method in ("count", "scroll", "delete"):
        with pytest.raises(FilterError, match="expected a filter"):
            driver.call(method, filter={"a": 1})
    with pytest.raises(FilterError, match="expected a filter"):
        driver.call("search", [], limit=1, filter="a = 1")

"""Whatever would poison an engine is refused before it gets there, and nothing of its batch is written."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import pathlib
import types
import uuid
from typing import Any

import numpy as np
import pytest

from stores.conftest import Make
from stores.oracle import Driver, Row, batch, dense_query, row
from twinvec.errors import InvalidRecordError
from twinvec.vectors import SparseBatch, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.metadata import plain_metadata
from twinvec_stores.records import DenseQuery, Record, RecordBatch, SparseQuery

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

CONFIG = StoreConfig(
    fingerprint="f",
    dim=4,
    idf=True,
    fields={"s": "keyword", "i": "integer", "f": "float", "b": "bool", "o.s": "keyword"},
)
EARLIER = Row("earlier", "kept", {"s": "x"}, {"file": "a.txt"}, sparse={1: 0.5})
UNIT = np.eye(4, dtype=np.float32)


def good(**other: Any) -> RecordBatch:
    """A batch of two records, the second one replaced in part."""
    columns: dict[str, Any] = {
        "ids": ["new", "earlier"],
        "texts": ["a", "b"],
        "dense": UNIT[:2],
        "sparse": SparseBatch.from_dicts([{1: 1.0}, {}]),
        "metadata": [{"s": "y"}, {}],
        "provenance": [{}, {}],
    }
    return RecordBatch(**{**columns, **other})


def deep(kind: str, levels: int) -> Any:
    """A value of so many containers, one in the other."""
    value: Any = 1
    for i in range(levels):
        value = {"k": value} if kind == "dict" or (kind == "mixed" and i % 2) else [value]
    return value


def written_to(**arrays: Any) -> SparseBatch:
    """A sparse batch that was valid when it was made."""
    made = SparseBatch.from_dicts([{1: 1.0, 2: 2.0}, {3: 1.0}])
    for name, values in arrays.items():
        getattr(made, name)[:] = values
    return made


def circle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["k"] = [value]
    return value


class Colour(enum.IntEnum):
    RED = 1


VALUES: dict[str, Any] = {
    "infinity": math.inf,
    "bytes": b"x",
    "timedelta": datetime.timedelta(1),
    "numpy timedelta": np.timedelta64(1, "s"),
    "set of objects": {object()},
    "complex": 1j,
    "object": object(),
    "range": range(3),
    "numpy infinity": np.float64("inf"),
    "array of objects": np.array([object()]),
    "beyond 64 bits": 2**63,
    "below 64 bits": -(2**63) - 1,
    "very long number": 10**5000,
    "surrogate": "a\ud800",
    "surrogate in a list": ["\udfff"],
    "surrogate in a key": {"\ud800": 1},
    "key that is a number": {1: 2},
    "key that is null": {None: 2},
    "key that is a tuple": {(1, 2): 2},
    "33 dicts": deep("dict", 33),
    "33 lists": deep("list", 33),
    "33 of both": deep("mixed", 33),
    "1000 lists": deep("list", 900),
    "circle": circle(),
}
OF_DECLARED_FIELDS: dict[str, Any] = {
    "number for keyword": {"s": 1},
    "bool for keyword": {"s": True},
    "number among keywords": {"s": ["x", 1]},
    "object for keyword": {"s": {"x": 1}},
    "list in a list": {"s": [["x"]]},
    "inner field": {"o": {"s": 1}},
    "fraction for integer": {"i": 1.5},
    "float for integer": {"i": 1.0},
    "bool for integer": {"i": True},
    "string for float": {"f": "1.5"},
    "bool for float": {"f": False},
    "number for bool": {"b": 1},
    "string for bool": {"b": "true"},
}
POISONS: dict[str, dict[str, Any]] = {
    "nan in dense": {"dense": np.array([[1, 0, 0, 0], [math.nan, 0, 0, 1]], np.float32)},
    "infinity in dense": {"dense": np.array([[1, 0, 0, 0], [math.inf, 0, 0, 1]], np.float32)},
    "dense beyond float32": {"dense": np.array([[1, 0, 0, 0], [1e39, 0, 0, 1]], np.float64)},
    "zero dense": {"dense": np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32)},
    "dense of 3": {"dense": np.ones((2, 3), np.float32)},
    "dense of 5": {"dense": np.ones((2, 5), np.float32)},
    "dense of one row": {"dense": np.ones((1, 4), np.float32)},
    "dense of three rows": {"dense": np.ones((3, 4), np.float32)},
    "dense without rows": {"dense": np.ones(8, np.float32)},
    "dense of strings": {"dense": np.array([["1", "0", "0", "0"]] * 2)},
    "dense of complex": {"dense": np.ones((2, 4), complex)},
    "dense of bools": {"dense": np.ones((2, 4), bool)},
    "dense of objects": {"dense": [[1, 0, 0, None], [1, 0, 0, 0]]},
    "ragged dense": {"dense": [[1, 0, 0, 0], [1, 0, 0]]},
    "no dense": {"dense": None},
    "no sparse": {"sparse": None},
    "sparse of one row": {"sparse": SparseBatch.from_dicts([{1: 1.0}])},
    "sparse of three rows": {"sparse": SparseBatch.from_dicts([{1: 1.0}, {}, {}])},
    "sparse of dicts": {"sparse": [{1: 1.0}, {}]},
    "huge weight": {"sparse": SparseBatch.from_dicts([{1: 1.0}, {1: 1e13}])},
    "sparse written to: nan": {"sparse": written_to(values=math.nan)},
    "sparse written to: negative": {"sparse": written_to(values=-1)},
    "sparse written to: twice the same": {"sparse": written_to(indices=5)},
    "sparse written to: halves": {"sparse": written_to(indptr=[0, 2, 9])},
    "one text": {"texts": ["a"]},
    "three texts": {"texts": ["a", "b", "c"]},
    "a string for the texts": {"texts": "ab"},
    "a number for a text": {"texts": ["a", 1]},
    "no text": {"texts": ["a", None]},
    "bytes for a text": {"texts": ["a", b"b"]},
    "surrogate in a text": {"texts": ["a", "b\ud800"]},
    "one metadata": {"metadata": [{}]},
    "metadata is a list": {"metadata": [{}, []]},
    "metadata is null": {"metadata": [{}, None]},
    "metadata is a string": {"metadata": [{}, "{}"]},
    "one dict for all metadata": {"metadata": {"a": 1, "b": 2}},
    "one provenance": {"provenance": [{}]},
    "provenance is a string": {"provenance": [{}, "file"]},
    "empty id": {"ids": ["new", ""]},
    "long id": {"ids": ["new", "x" * 1025]},
    "id of many bytes": {"ids": ["new", "日" * 342]},
    "surrogate in an id": {"ids": ["new", "\ud800"]},
    "fraction for an id": {"ids": ["new", 1.5]},
    "bool for an id": {"ids": ["new", True]},
    "no id": {"ids": ["new", None]},
    "a string for the ids": {"ids": "ab"},
    "one id": {"ids": ["new"]},
    **{f"metadata: {name}": {"metadata": [{"k": 1}, {"k": value}]} for name, value in VALUES.items()},
    **{f"provenance: {name}": {"provenance": [{}, {"k": value}]} for name, value in VALUES.items()},
    **{f"declared: {name}": {"metadata": [{}, metadata]} for name, metadata in OF_DECLARED_FIELDS.items()},
}


def with_earlier(make: Make) -> Driver:
    driver = make(CONFIG)
    driver.call("upsert", batch([EARLIER], CONFIG))
    return driver


def refused(driver: Driver, method: str, *args: Any, **options: Any) -> bool:
    """Whether a call is refused, in a message that can be read."""
    try:
        driver.call(method, *args, **options)
    except InvalidRecordError as error:
        return 10 < len(str(error)) < 600
    return False


def assert_untouched(driver: Driver) -> None:
    assert driver.call("count") == 1
    assert [row(r) for r in driver.call("get", ["new", "earlier"], with_vectors=True)] == [EARLIER]


def test_poison_is_refused_and_nothing_is_written(make: Make) -> None:
    driver = with_earlier(make)
    taken = [name for name, poison in POISONS.items() if not refused(driver, "upsert", good(**poison))]
    assert taken == []
    assert_untouched(driver)
    driver.reopen()
    assert_untouched(driver)
    driver.call("upsert", good())
    assert driver.call("count") == 2


def test_a_refusal_says_which_record_and_where() -> None:
    from twinvec_stores.engines.memory import MemoryStore

    store = MemoryStore(CONFIG)
    for poison, words in [
        ({"metadata": [{}, {"k": {"inner": [1, {"x": math.inf}]}}]}, ["'earlier'", "['k']['inner'][1]['x']", "inf"]),
        ({"metadata": [{}, {"i": "1"}]}, ["'earlier'", "field i", "integer", "'1'"]),
        ({"dense": np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32)}, ["'earlier'", "dense", "zero"]),
        ({"dense": np.ones((2, 3), np.float32)}, ["[2, 3]", "[2, 4]"]),
        ({"sparse": SparseBatch.from_dicts([{1: 1.0}, {1: 1e13}])}, ["'earlier'", "weight"]),
        ({"texts": ["a", 1]}, ["'earlier'", "text", "int"]),
        ({"texts": ["a"]}, ["2 ids but 1 texts"]),
        ({"ids": ["a", ""]}, ["ids[1]"]),
    ]:
        with pytest.raises(InvalidRecordError) as caught:
            store.upsert(good(**poison))  # type: ignore[arg-type]
        assert [word for word in words if word not in str(caught.value)] == []
        if "'earlier'" in words:
            assert caught.value.id == "earlier"
            assert str(caught.value) == f"record 'earlier': {caught.value.reason}"


def test_a_refusal_carries_its_field() -> None:
    from twinvec_stores.engines.memory import MemoryStore

    store = MemoryStore(CONFIG)
    for poison, field in [
        ({"metadata": [{}, {"k": {"inner": [1, {"x": math.inf}]}}]}, "metadata['k']['inner'][1]['x']"),
        ({"metadata": [{}, {"i": "1"}]}, "metadata['i']"),
        ({"dense": np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32)}, "dense"),
        ({"sparse": SparseBatch.from_dicts([{1: 1.0}, {1: 1e13}])}, "sparse"),
        ({"texts": ["a", 1]}, "text"),
        ({"ids": ["a", ""]}, "ids[1]"),
        ({"provenance": [{}, {"k": b"x"}]}, "provenance['k']"),
    ]:
        with pytest.raises(InvalidRecordError) as caught:
            store.upsert(good(**poison))  # type: ignore[arg-type]
        assert caught.value.field == field


class Tone(enum.Enum):
    WARM = "warm"
    COLD = 3


TZ = datetime.timezone(datetime.timedelta(hours=3))
PANDAS_NA = type("NAType", (), {})()
RULE: dict[str, tuple[Any, Any]] = {
    "numpy int": (np.int64(3), 3),
    "numpy float": (np.float32(0.5), 0.5),
    "numpy bool": (np.bool_(True), True),
    "numpy string": (np.str_("x"), "x"),
    "numpy array": (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "numpy array of no dimension": (np.array(3), 3),
    "numpy date of no dimension": (np.array("2024-01-02", "datetime64[D]"), "2024-01-02"),
    "numpy object of no dimension": (np.array(decimal.Decimal("1.5"), object), "1.5"),
    "datetime": (datetime.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
    "datetime with an offset": (datetime.datetime(2024, 1, 2, 3, tzinfo=TZ), "2024-01-02T03:00:00+03:00"),
    "date": (datetime.date(2024, 1, 2), "2024-01-02"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "numpy date": (np.datetime64("2024-01-02"), "2024-01-02"),
    "numpy time of nanoseconds": (np.datetime64("2024-01-02T03:04:05.000000001"), "2024-01-02T03:04:05.000000001"),
    "numpy time of whole seconds": (np.datetime64("2024-01-02T03:04:05", "ns"), "2024-01-02T03:04:05"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "path": (pathlib.PurePosixPath("a/b.txt"), "a/b.txt"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "enum of strings": (Tone.WARM, "warm"),
    "enum of others": (Tone.COLD, "COLD"),
    "enum that is a number": (Colour.RED, 1),
    "nan": (math.nan, None),
    "numpy nan": (np.float32("nan"), None),
    "decimal nan": (decimal.Decimal("nan"), None),
    "decimal signalling nan": (decimal.Decimal("sNaN"), None),
    "nat": (np.datetime64("NaT"), None),
    "masked": (np.ma.masked, None),
    "array with a masked value": (np.ma.masked_array([1, 2], [False, True]), [1, None]),
    "pandas na": (PANDAS_NA, None),
    "set": ({"b", "a"}, ["a", "b"]),
    "set of numbers": (frozenset({10, 9}), [9, 10]),
    "set of missing values": ({math.nan, None, np.float32("nan")}, [None, None, None]),
    "set of what cannot be compared": ({(1, "a"), ("a", 1)}, [["a", 1], [1, "a"]]),
    "nested": ({"a": [{"b": datetime.date(2024, 1, 2)}, math.nan]}, {"a": [{"b": "2024-01-02"}, None]}),
}


@pytest.mark.parametrize("name", RULE)
def test_the_one_metadata_rule(name: str) -> None:
    given, expected = RULE[name]
    plain = plain_metadata({"k": given})
    assert plain == {"k": expected}
    assert type(plain["k"]) is type(expected)


def test_pandas_values_are_missing_or_dates() -> None:
    pandas = pytest.importorskip("pandas")
    given = {"a": pandas.NaT, "b": pandas.NA, "c": pandas.Timestamp("2024-01-02 03:04:05.000000001")}
    assert plain_metadata(given) == {"a": None, "b": None, "c": "2024-01-02T03:04:05.000000001"}


def test_ids_become_strings(make: Make) -> None:
    driver = make(CONFIG)
    driver.call("upsert", good(ids=[np.int64(7), uuid.UUID(int=5)]))
    assert [r.id for r in driver.call("get", [7, uuid.UUID(int=5)])] == ["7", str(uuid.UUID(int=5))]
    driver.call("delete", [7])
    assert driver.call("count") == 1


def test_something_else_than_a_batch_is_refused(make: Make) -> None:
    driver = with_earlier(make)
    for given in ([Record("a", "b")], {"ids": ["a"]}, None):
        with pytest.raises(InvalidRecordError, match=r"RecordBatch\.of"):
            driver.call("upsert", given)


def test_what_json_can_hold_comes_back_as_plain_json(make: Make) -> None:
    driver = make(CONFIG)
    given = {
        "tuple": (1, (2, "x")),
        "mapping": types.MappingProxyType({"a": types.MappingProxyType({"b": [None]})}),
        "enum": Colour.RED,
        "numpy float": np.float64(1.5),
        "numpy string": np.str_("x"),
        "large": [2**63 - 1, -(2**63), 1e308, 5e-324, -0.0, 0.1 + 0.2, 1 / 3],
        "text": "\0\n\u2028\ufeff\U0001f600 e\u0301",
        "": {"": {}},
        "empty": [[], {}, "", None],
        "true": True,
        "a.b": 1,
    }
    expected = {
        **given,
        "tuple": [1, [2, "x"]],
        "mapping": {"a": {"b": [None]}},
        "enum": 1,
        "numpy float": 1.5,
        "numpy string": "x",
    }
    driver.call("upsert", good(metadata=[given, {}], provenance=[types.MappingProxyType(given), {}]))
    driver.reopen()
    [record] = driver.call("get", ["new"])
    assert record.metadata == record.provenance == expected
    assert str(record.metadata["large"]) == str(expected["large"])  # -0.0, and every digit

    def types_in(value: Any) -> set[type]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return {type(value)}.union(*map(types_in, inner))

    assert types_in(record.metadata) == {dict, list, str, int, float, bool, type(None)}


@pytest.mark.parametrize("kind", ["dict", "list", "mixed"])
def test_metadata_as_deep_as_allowed_survives(make: Make, kind: str) -> None:
    driver = make(CONFIG)
    metadata = {"k": deep(kind, 31)}
    driver.call("upsert", good(metadata=[metadata, {}], provenance=[metadata, {}]))
    driver.reopen()
    [record] = driver.call("get", ["new"])
    assert record.metadata == record.provenance == metadata


def test_ids_and_texts_of_any_unicode_survive(make: Make) -> None:
    driver = make(CONFIG)
    ids = ["x" * 1024, "日" * 341, "\0", " ", "é", "e\u0301", "\u202e", "\U0010ffff", "../a", "'; drop", "a\nb"]
    driver.call("upsert", batch([Row(id, text=id * 2) for id in ids], CONFIG))
    driver.reopen()
    assert [(r.id, r.text) for r in driver.call("get", ids)] == [(id, id * 2) for id in ids]
    driver.call("delete", ids[:5])
    assert sorted(r.id for r in driver.call("scroll")[0]) == sorted(ids[5:])


@pytest.mark.parametrize("ids", ["abc", None, 5, [1.5], [None], [""], ["x" * 1025], ["\ud800"], [b"x"], {"a": 1}])
def test_ids_to_get_and_to_delete_are_checked(make: Make, ids: Any) -> None:
    driver = with_earlier(make)
    with pytest.raises(InvalidRecordError, match="ids"):
        driver.call("get", ids)
    if ids is not None:
        with pytest.raises(InvalidRecordError, match="ids"):
            driver.call("delete", ids)
    assert_untouched(driver)


def sparse(indices: Any, values: Any) -> SparseQuery:
    return SparseQuery(SparseVector(indices, values))


QUERIES: dict[str, Any] = {
    "nan": dense_query(math.nan, 0, 0, 1),
    "infinity": dense_query(math.inf, 0, 0, 1),
    "zero": dense_query(0, 0, 0, 0),
    "3 dimensions": dense_query(1, 0, 0),
    "two rows": DenseQuery(UNIT[:2]),
    "a number": DenseQuery(1.0),  # type: ignore[arg-type]
    "strings": DenseQuery(np.array(["1", "0", "0", "0"])),
    "nothing": DenseQuery(None),  # type: ignore[arg-type]
    "unsorted": sparse(np.array([2, 1], np.int32), np.ones(2, np.float32)),
    "twice the same": sparse(np.array([1, 1], np.int32), np.ones(2, np.float32)),
    "negative key": sparse(np.array([-1], np.int32), np.ones(1, np.float32)),
    "key beyond int32": sparse(np.array([2**31]), np.ones(1, np.float32)),
    "nan weight": sparse(np.array([1], np.int32), np.array([math.nan], np.float32)),
    "negative weight": sparse(np.array([1], np.int32), np.array([-1], np.float32)),
    "zero weight": sparse(np.array([1], np.int32), np.zeros(1, np.float32)),
    "huge weight": sparse(np.array([1], np.int32), np.array([1e13], np.float32)),
    "more keys than weights": sparse(np.array([1, 2], np.int32), np.ones(1, np.float32)),
    "more weights than keys": sparse(np.array([1], np.int32), np.ones(2, np.float32)),
    "a matrix": sparse(np.ones((1, 1), np.int32), np.ones((1, 1), np.float32)),
    "a dict": SparseQuery({1: 1.0}),  # type: ignore[arg-type]
    "a bare array": UNIT[0],
    "no query": None,
}


def test_malformed_queries_are_refused(make: Make) -> None:
    driver = with_earlier(make)
    fine = dense_query(1, 0, 0, 0)
    taken = [name for name, query in QUERIES.items() if not refused(driver, "search", [fine, query], limit=3)]
    assert taken == []
    [hits] = driver.call("search", [fine], limit=3)
    assert [hit.id for hit in hits] == ["earlier"]


def test_vectors_that_a_store_does_not_keep_are_refused(make: Make) -> None:
    for config, other in [
        (StoreConfig(fingerprint="f", dim=4, sparse=False), sparse(np.array([1], np.int32), np.ones(1, np.float32))),
        (StoreConfig(fingerprint="f"), dense_query(1, 0, 0, 0)),
    ]:
        driver = make(config)
        with pytest.raises(InvalidRecordError, match="has no"):
            driver.call("upsert", good())
        with pytest.raises(InvalidRecordError, match="has no"):
            driver.call("search", [other], limit=1)
        assert driver.call("count") == 0


def test_a_batch_of_records_carries_what_they_carry() -> None:
    vector = SparseVector(np.array([1], np.int32), np.ones(1, np.float32))
    records = [Record("a", "x", {"k": 1}, {"p": 1}, UNIT[0], vector), Record("b", "y", dense=UNIT[1], sparse=vector)]
    made = RecordBatch.of(records)
    assert len(made) == 2
    assert made.dense is not None
    assert made.sparse is not None
    assert (made.dense.tolist(), made.sparse.to_dicts()) == (UNIT[:2].tolist(), [{1: 1.0}, {1: 1.0}])
    assert [row(r) for r in made] == [row(r) for r in records]
    bare = RecordBatch.of([Record("a", "x")])
    assert (bare.dense, bare.sparse) == (None, None)
    with pytest.raises(InvalidRecordError, match="1 of 2 records lack their dense"):
        RecordBatch.of([records[0], Record("b", "y", sparse=vector)])
    with pytest.raises(InvalidRecordError, match="1 of 2 records lack their sparse"):
        RecordBatch.of([records[0], Record("b", "y", dense=UNIT[0])])
    with pytest.raises(InvalidRecordError, match="dimensions"):
        RecordBatch.of([Record("a", "x", dense=UNIT[0]), Record("b", "y", dense=UNIT[0][:2])])
    with pytest.raises(InvalidRecordError, match="sorted"):
        RecordBatch.of([Record("a", "x", sparse=SparseVector(np.array([2, 1], np.int32), np.ones(2, np.float32)))])

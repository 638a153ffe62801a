"""Arguments that no caller should give, on every engine; and a store.json that somebody has edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.conftest import Make
from stores.oracle import Row, batch, dense_query
from twinvec.errors import ConfigurationError, StoreMismatchError, TwinVecError
from twinvec_stores import EmbeddedStore, SearchOptions, StoreConfig
from twinvec_stores.filters.conditions import Range

CONFIG = StoreConfig(fingerprint="f", dim=2, idf=True)
ROWS = [Row(str(i), dense=(1.0, 0.0), sparse={i: 1.0}) for i in range(5)]

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.mark.parametrize("cursor", ["", "x", "1", "00000000-0000-0000-0000-00000000000g", "\ud800", 7, b"x", ["a"]])
def test_bad_cursors(make: Make, cursor: Any) -> None:
    store = make(CONFIG).store
    with pytest.raises(ConfigurationError, match="cursor"):
        store.scroll(cursor)


@pytest.mark.parametrize("limit", [0, -1, 2**31, 2**64, 10**30, True, 1.0, float("nan"), "5", None])
def test_bad_limits(make: Make, limit: Any) -> None:
    store = make(CONFIG).store
    store.upsert(batch(ROWS, CONFIG))
    for call in (
        lambda: store.search([dense_query(1, 0)], limit=limit),
        lambda: store.scroll(limit=limit),
        lambda: SearchOptions(k=limit),
    ):
        with pytest.raises(ConfigurationError, match=r"(limit|k)=.* must be an integer"):
            call()


@pytest.mark.parametrize("limit", [5, 10_001, 2**31 - 1])
def test_more_than_there_is_gives_all(make: Make, limit: int) -> None:
    store = make(CONFIG).store
    assert store.search([dense_query(1, 0)], limit=limit) == [[]]
    store.upsert(batch(ROWS, CONFIG))
    (hits,) = store.search([dense_query(1, 0)], limit=limit)
    assert [hit.id for hit in hits] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", True, None])
def test_thresholds_and_bounds_that_are_no_numbers(value: Any) -> None:
    if value is not None:
        for name in ("score_threshold", "min_dense", "min_sparse"):
            with pytest.raises(ConfigurationError, match=name):
                SearchOptions(**{name: value})
        with pytest.raises(ConfigurationError, match="mmr"):
            SearchOptions(mmr=float("nan"))
    if value != "0.5" and not value == float("inf"):  # noqa: SIM201
        with pytest.raises(TwinVecError):
            Range("n", gte=value)


def edits() -> list[Any]:
    values: dict[str, list[Any]] = {
        "fingerprint": [None, 7, "g"],
        "model": [None, []],
        "document_prompt": [None, 1, "passage: "],
        "recipe": [None, [], "x"],
        "dim": [None, 3, "2", 2.0, True, 0],
        "sparse": [False, "yes", None],
        "idf": [False, 1, None],
        "fields": [None, [], {"a": "nothing"}, {"n": "keyword"}, {"": "keyword"}],
        "quantization": ["int8", "int4", 8, "first_dim=4", "first_dim=0", "first_dim=2.0", " binary"],
        "schema_version": [None, 1, 3, "2"],
    }
    return [(name, value) for name, given in values.items() for value in given]


def test_an_edited_configuration_is_refused(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
    path = tmp_path / "s" / "store.json"
    whole = path.read_text()
    for name, value in edits():
        path.write_text(json.dumps({**json.loads(whole), name: value}))
        with pytest.raises(StoreMismatchError, match=r"store\.json|configuration|schema|early"):
            EmbeddedStore(tmp_path / "s")
    for content in ("", "{", "[]", "null", "[" * 5000, '{"a": 1}', whole[:-3]):
        path.write_text(content)
        with pytest.raises(StoreMismatchError):
            EmbeddedStore(tmp_path / "s")
    data = json.loads(whole)
    del data["crc32"]  # as earlier versions wrote it
    path.write_text(json.dumps(data))
    with EmbeddedStore(tmp_path / "s") as store:
        assert store.count() == 5
        assert len(store.search([dense_query(*np.eye(2)[0])], limit=9)[0]) == 5

"""Copies of a store in any other engine: whole, resumed, brought up to date, and compared."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.conftest import ENGINES, make_driver
from stores.embedded import contents
from stores.oracle import Driver, Row, batch
from twinvec.errors import FingerprintMismatchError
from twinvec_stores import (
    EmbeddedStore,
    Hit,
    HybridStore,
    MemoryStore,
    RecordBatch,
    StoreConfig,
    compare_stores,
    copy_store,
)

CONFIG = StoreConfig(fingerprint="one", model="models/one", dim=4, idf=True, fields={"n": "integer", "day": "datetime"})
_RANDOM = np.random.default_rng(3)


def vector() -> tuple[float, ...]:
    drawn = _RANDOM.normal(size=4)
    return tuple((drawn / np.linalg.norm(drawn)).astype(np.float32).tolist())


ROWS = [
    Row(
        f"r {i}",
        f"text {i} \u0000é" if i % 5 == 0 else "",
        {"n": i, "day": f"2025-01-{i % 28 + 1:02}", "deep": {"x": [i, 1.0, None, "ü"]}},
        {"document": f"d{i}", "hash": "h"} if i % 2 else {},
        vector(),
        {key: float(np.float32(0.1 + key / 7)) for key in range(i % 6)},
    )
    for i in range(40)
]

Make = Callable[[StoreConfig], HybridStore]


def filled(store: HybridStore, rows: list[Row] = ROWS) -> HybridStore:
    store.upsert(batch(rows, store.config))
    return store


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Driver]]:
    """A store of each engine, which is made once."""
    made: dict[str, Driver] = {}

    def give(name: str) -> Driver:
        if name not in made:
            made[name] = make_driver(name.split(maxsplit=1)[0], CONFIG, tmp_path_factory.mktemp("store"))
        made[name].clear()
        return made[name]

    yield give
    for driver in made.values():
        driver.end()


@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("source", ENGINES)
def test_a_copy_is_the_same_in_every_engine(drivers: Callable[[str], Driver], source: str, target: str) -> None:
    one, two = filled(drivers(f"{source} 1").store), drivers(f"{target} 2").store
    done: list[int] = []
    assert copy_store(one, two, done.append) == len(ROWS)
    assert done[-1] == len(ROWS)
    assert contents(two) == sorted(ROWS, key=lambda r: r.id)
    assert compare_stores(one, two) == []


class Counting(MemoryStore):
    """Remembers the ids that were written."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.written: list[str] = []

    def upsert(self, batch: RecordBatch) -> None:
        super().upsert(batch)
        self.written += batch.ids


def test_what_is_there_is_not_written_again() -> None:
    source, target = filled(MemoryStore(CONFIG)), Counting(CONFIG)
    copy_store(source, target)
    target.written.clear()
    source.upsert(batch([replace(ROWS[3], text="changed"), Row("new"), replace(ROWS[4], sparse={9: 1.0})], CONFIG))
    assert copy_store(source, target) == len(ROWS) + 1
    assert sorted(target.written) == sorted(["new", ROWS[3].id, ROWS[4].id])
    assert contents(target) == contents(source)


def test_only_pruning_deletes() -> None:
    source, target = filled(MemoryStore(CONFIG)), filled(MemoryStore(CONFIG), [Row("other"), *ROWS[:2]])
    source.delete([ROWS[1].id])
    copy_store(source, target)
    assert {"other", ROWS[1].id} <= {row.id for row in contents(target)}
    assert compare_stores(source, target)[0] == "the source has 39 records, the copy 41"
    copy_store(source, target, prune=True)
    assert contents(target) == contents(source)
    assert compare_stores(source, target) == []


_KILLED = """
import os, signal, sys
from twinvec_stores import EmbeddedStore, copy_store, transfer
transfer._PAGE = 16
def die(n):
    if n >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
with EmbeddedStore(sys.argv[1], read_only=True) as source:
    copy_store(source, EmbeddedStore(sys.argv[2], source.config), die)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_copy_is_resumed(tmp_path: Path) -> None:
    source = filled(EmbeddedStore(tmp_path / "one", CONFIG))
    for at in (16, 32):
        arguments = [str(tmp_path / "one"), str(tmp_path / "two"), str(at)]
        assert subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False).returncode == -signal.SIGKILL
        with EmbeddedStore(tmp_path / "two") as target:
            assert target.count() == at
    with EmbeddedStore(tmp_path / "two", CONFIG) as target:
        copy_store(source, target)
        assert contents(target) == contents(source)
        assert compare_stores(source, target) == []
    source.close()


def test_settings_may_differ_but_not_the_model() -> None:
    source = filled(MemoryStore(CONFIG))
    plain = MemoryStore(replace(CONFIG, fields={}))
    copy_store(source, plain)
    assert contents(plain) == contents(source)
    with pytest.raises(FingerprintMismatchError):
        copy_store(source, MemoryStore(replace(CONFIG, fingerprint="two")))


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (replace(ROWS[7], text="other"), "the record 'r 7' differs"),
        (replace(ROWS[7], metadata={}), "the record 'r 7' differs"),
        (replace(ROWS[7], dense=ROWS[8].dense), "the dense search for the record 'r 7' finds other records"),
        (replace(ROWS[5], sparse={1: 5.0}), "the sparse search for the record 'r 5' finds other records"),
        (replace(ROWS[5], sparse={}), "of 5 terms occur in other numbers of records"),
    ],
)
def test_a_copy_that_differs_is_told(changed: Row, difference: str) -> None:
    source, target = filled(MemoryStore(CONFIG)), filled(MemoryStore(CONFIG))
    target.upsert(batch([changed], CONFIG))
    assert any(difference in found for found in compare_stores(source, target))


@pytest.mark.parametrize("quantization", ["int8", "binary", "first_dim=2"])
def test_a_copy_that_is_quantized_is_compared_exactly(tmp_path: Path, quantization: str) -> None:
    with EmbeddedStore(tmp_path / "two", replace(CONFIG, quantization=quantization)) as target:
        source = filled(MemoryStore(CONFIG))
        copy_store(source, target)
        assert compare_stores(source, target) == []
        target.upsert(batch([replace(ROWS[7], dense=ROWS[8].dense)], CONFIG))
        assert any("the dense search for the record 'r 7'" in found for found in compare_stores(source, target))


def test_an_engine_that_ranks_otherwise_is_told() -> None:
    class Wrong(MemoryStore):
        def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
            return [[Hit(id, 0.9 * score) for id, score in hits] for hits in super().search(*arguments, **options)]

    source, target = filled(MemoryStore(CONFIG)), filled(Wrong(CONFIG))
    found = compare_stores(source, target, sample=3)
    assert len(found) >= 3
    assert all("search for the record" in each for each in found)


def test_empty_stores_agree() -> None:
    source, target = MemoryStore(CONFIG), MemoryStore(CONFIG)
    assert copy_store(source, target) == 0
    assert compare_stores(source, target) == []

"""A folder that has lost a part is not opened as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from twinvec.errors import StoreEngineError
from twinvec_stores import EmbeddedStore, RecordBatch, StoreConfig

CONFIG = StoreConfig(fingerprint="f", dim=2, sparse=False)


def fill(path: Path, n: int) -> None:
    with EmbeddedStore(path, CONFIG) as store:
        ids = [str(i) for i in range(n)]
        store.upsert(RecordBatch(ids, ids, dense=np.tile(np.array([0.6, 0.8], np.float32), (n, 1))))


def test_missing_files_are_noticed_and_can_be_accepted(tmp_path: Path) -> None:
    fill(tmp_path / "s", 7)
    for part in ("segments", "wal"):
        for entry in (tmp_path / "s" / "shard" / part).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with pytest.raises(StoreEngineError, match="0 of the 7 records"):
        EmbeddedStore(tmp_path / "s")
    (tmp_path / "s" / "count").unlink()
    with EmbeddedStore(tmp_path / "s") as store:
        assert store.count() == 0


def test_an_untouched_folder_opens_as_often_as_one_likes(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    for _ in range(3):
        with EmbeddedStore(tmp_path / "s") as store:
            assert store.count() == 3


def test_writes_after_the_count_was_taken_are_no_damage(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    with EmbeddedStore(tmp_path / "s") as store:
        store.delete(["0"])
    with EmbeddedStore(tmp_path / "s") as store:
        assert store.count() == 2


@pytest.mark.parametrize("value", [0.1 + 0.2, 1.4000000000000001, 2**53 + 2.0, -0.0, 1e308, 5e-324, 1 / 3])
def test_floats_in_metadata_come_back_exactly(tmp_path: Path, value: float) -> None:
    metadata = {"x": value, "nested": {"list": [value, 1]}}
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(RecordBatch(["a"], ["a"], dense=np.array([[1, 0]], np.float32), metadata=[metadata]))
        (record,) = store.get(["a"])
    assert repr(record.metadata) == repr(metadata)

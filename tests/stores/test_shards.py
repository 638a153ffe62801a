"""Folders of parquet files: what was written comes back bit for bit, and nothing of a damaged one is imported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from stores_ingest.holding import held, plain
from twinvec.errors import FingerprintMismatchError, StoreMismatchError
from twinvec.vectors import SparseBatch
from twinvec_stores import MemoryStore, RecordBatch, ShardFolder, StoreConfig, import_store, read_export
from twinvec_stores.shards import MANIFEST

CONFIG = StoreConfig(fingerprint="f" * 32, model="m", dim=5)


def batch(first: int, n: int) -> RecordBatch:
    """Records that a store takes as they are, one of them without a sparse key."""
    draw = np.random.default_rng(first)
    dense = draw.standard_normal((n, 5))
    dense = (dense / np.linalg.norm(dense, axis=1, keepdims=True)).astype(np.float32)
    rows = [{int(key): float(draw.random() + 0.1) for key in draw.choice(2**31 - 1, i % 4)} for i in range(n)]
    return RecordBatch(
        [f"{i} ы" for i in range(first, first + n)],
        [f"text {i}\n" for i in range(first, first + n)],
        dense,
        SparseBatch.from_dicts(rows),
        [{"year": i, "nested": {"a": [None, "б"]}} for i in range(n)],
        [{"document": str(i), "hash": "h"} for i in range(n)],
    )


@pytest.fixture(params=["folder", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> ShardFolder:
    where = str(tmp_path / "s") if request.param == "folder" else f"memory://{tmp_path.name}"
    folder = ShardFolder(where)
    shards = [
        folder.write("part-a.parquet", [batch(0, 7), batch(7, 3)], CONFIG),
        folder.write("part-b.parquet", [batch(10, 4)], CONFIG),
    ]
    folder.write("part-unlisted.parquet", [batch(100, 4)], CONFIG)
    folder.finish(shards, CONFIG)
    return folder


def test_what_was_written_comes_back_bit_for_bit(folder: ShardFolder) -> None:
    expected, imported = MemoryStore(CONFIG), MemoryStore(CONFIG)
    for part in (batch(0, 7), batch(7, 3), batch(10, 4)):
        expected.upsert(part)
    assert import_store(folder.where, imported) == 14
    left, right = held(imported), held(expected)
    assert left.keys() == right.keys()
    for id, record in left.items():
        assert plain(record) == plain(right[id])
        assert record.checksum == right[id].checksum  # of the vectors' bits, too
    assert read_export(folder.where)[0] == CONFIG


def test_other_programs_read_the_columns(tmp_path: Path) -> None:
    part = batch(0, 7)
    ShardFolder(tmp_path).write("x.parquet", [part], CONFIG)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table["id"].to_pylist() == part.ids
    assert part.dense is not None
    assert part.sparse is not None
    np.testing.assert_array_equal(np.array(table["dense"].to_pylist(), np.float32), part.dense)
    assert table["sparse_indices"].to_pylist() == [row.indices.tolist() for row in part.sparse]
    header = json.loads(table.schema.metadata[b"twinvec-store"])
    assert header["config"]["fingerprint"] == CONFIG.fingerprint


def test_nothing_is_imported_into_a_store_of_another_model(folder: ShardFolder) -> None:
    store = MemoryStore(StoreConfig(fingerprint="0" * 32, dim=5))
    with pytest.raises(FingerprintMismatchError):
        import_store(folder.where, store)
    assert store.count() == 0


@pytest.mark.parametrize("harm", ["a byte", "cut", "missing", "no manifest", "not JSON", "elsewhere", "no list"])
def test_nothing_of_a_damaged_folder_is_imported(harm: str, tmp_path: Path) -> None:
    folder, store = ShardFolder(tmp_path), MemoryStore(CONFIG)
    shards = [folder.write(f"{i}.parquet", [batch(i * 10, 10)], CONFIG) for i in range(2)]
    folder.finish(shards, CONFIG)
    last, manifest = tmp_path / "1.parquet", tmp_path / MANIFEST
    content = last.read_bytes()
    text = manifest.read_text(encoding="utf-8")
    if harm == "a byte":
        last.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif harm == "cut":
        last.write_bytes(content[:-1])
    elif harm == "missing":
        last.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "not JSON":
        manifest.write_text(text[:-2], encoding="utf-8")
    elif harm == "elsewhere":
        manifest.write_text(text.replace("1.parquet", "../1.parquet"), encoding="utf-8")
    else:
        manifest.write_text(text.replace('"shards"', '"others"'), encoding="utf-8")
    with pytest.raises(StoreMismatchError, match=tmp_path.name):
        import_store(tmp_path, store)
    assert store.count() == 0


def test_a_file_is_found_with_its_provenance_unless_it_is_damaged(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    shard = folder.write("a.parquet", [batch(0, 3)], CONFIG)
    assert folder.find("a.parquet") == (shard, [{"document": str(i), "hash": "h"} for i in range(3)])
    assert folder.find("b.parquet") is None
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert folder.find("a.parquet") is None

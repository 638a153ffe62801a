"""Files that were damaged, and folders that other programs and full disks have been at."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twinvec.errors import StoreEngineError, StoreMismatchError
from twinvec_stores import (
    DenseQuery,
    EmbeddedStore,
    MemoryStore,
    RecordBatch,
    StoreConfig,
    export_store,
    import_store,
)

CONFIG = StoreConfig(fingerprint="f", dim=8, sparse=False)


def fill(store: MemoryStore | EmbeddedStore) -> None:
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    texts = [f"text number {i} é" for i in range(200)]
    store.upsert(RecordBatch([f"r{i}" for i in range(200)], texts, vectors, None, [{"n": i} for i in range(200)]))


@pytest.mark.parametrize("name", ["export.jsonl", "export.jsonl.gz"])
def test_nothing_of_a_damaged_file_is_imported(tmp_path: Path, name: str) -> None:
    source = MemoryStore(CONFIG)
    fill(source)
    path = tmp_path / name
    export_store(source, path)
    whole, draw = path.read_bytes(), random.Random(3)
    start = 20 if name.endswith(".gz") else 0  # the time in gzip's own header says nothing of the content
    damages = [whole[: draw.randrange(len(whole))] for _ in range(10)] + [whole + b"x", whole[:-1] + b"\xff"]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(start, len(whole))] ^= 1 << draw.randrange(8)
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        target = MemoryStore(CONFIG)
        with pytest.raises(StoreMismatchError):
            import_store(path, target)
        assert target.count() == 0
    path.write_bytes(whole)
    assert import_store(path, MemoryStore(CONFIG)) == 200


def test_optimizing_without_room_leaves_the_store_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path / "store", CONFIG) as store:
        fill(store)
        real = shutil.disk_usage
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=50 << 20))
            with pytest.raises(StoreEngineError, match="nearly full"):
                store.optimize()
        assert len(store.search([DenseQuery(np.ones(8, np.float32))], limit=5)[0]) == 5


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"])
def test_what_file_managers_leave_behind_is_no_obstacle(tmp_path: Path, name: str) -> None:
    with EmbeddedStore(tmp_path / "store", CONFIG) as store:
        fill(store)
    (tmp_path / "store" / name).mkdir() if name == "lost+found" else (tmp_path / "store" / name).write_bytes(b"x")
    with EmbeddedStore(tmp_path / "store") as store:
        assert store.count() == 200


def test_a_folder_deleted_while_open_leaves_no_traceback() -> None:
    code = (
        "import tempfile\nfrom twinvec_stores import EmbeddedStore, StoreConfig\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    store = EmbeddedStore(folder + '/s', StoreConfig(fingerprint='f', dim=2, sparse=False))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")

"""Damage inside of a store: what is found, what is refused, and that nothing else changes an answer."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stores.conftest import ENGINES, make_driver
from stores.oracle import Row, batch
from twinvec.errors import ConfigurationError, StoreEngineError
from twinvec.vectors import SparseVector
from twinvec_cli.main import app
from twinvec_stores import (
    EmbeddedStore,
    MemoryStore,
    Record,
    SparseQuery,
    StoreConfig,
    copy_store,
    export_store,
    verify_store,
)
from twinvec_stores.records import checksum

CONFIG = StoreConfig(
    fingerprint="f", dim=4, idf=True, fields={"n": "integer", "kw": "keyword", "day": "datetime", "note": "text"}
)
FLIPS = 28
# opens a store that was damaged, and prints "refused", or whether verify found something and all that it answers
ASK = """
import json, sys
from stores.test_verify import answers
from twinvec.errors import TwinVecError
from twinvec_stores import EmbeddedStore, verify_store
for folder in sys.argv[1:]:
    try:
        with EmbeddedStore(folder) as store:
            found = not verify_store(store).intact
            print(json.dumps(["found" if found else "nothing", None if found else answers(store)]), flush=True)
    except TwinVecError as error:
        print(json.dumps(["refused", str(error)]), flush=True)
"""


def rows(n: int) -> list[Row]:
    draw = random.Random(1)
    found = []
    for i in range(n):
        dense = np.array([draw.gauss(0, 1) for _ in range(4)])
        metadata = {
            "n": i,
            "kw": "abc"[i % 3],
            "day": f"2025-01-{i % 28 + 1:02d}",
            "note": f"word{i % 7} x",
            "f": i / 7,
        }
        sparse = {key: draw.random() + 0.1 for key in draw.sample(range(60), 6)}
        found.append(Row(f"r{i}", f"text {i} é", metadata, {"document": "d"}, tuple(dense.tolist()), sparse))
    return found


def answers(store: Any) -> Any:
    """Everything that a store can be asked, rounded as a person would see it."""
    found: list[Any] = [
        [record.id, record.text, record.metadata, np.asarray(record.dense).round(4).tolist(), record.sparse.to_dict()]
        for page in store.scroll_all(with_vectors=True)
        for record in page
    ]
    keys = np.arange(60, dtype=np.int32)
    one = [SparseQuery(SparseVector(keys[i : i + 1], np.ones(1, np.float32))) for i in range(60)]
    found.append([[(hit.id, round(hit.score, 4)) for hit in hits] for hits in store.search(one, limit=200)])
    found.append(store.document_frequencies(keys).tolist())
    return json.loads(json.dumps(sorted(found, key=repr)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_an_undamaged_store_is_intact(engine: str, tmp_path: Path) -> None:
    driver = make_driver(engine, CONFIG, tmp_path / "s")
    store = driver.store
    assert verify_store(store) == dataclasses.replace(verify_store(store), records=0, total=0)
    n = 60 if engine == "qdrant" else 700  # its local mode counts slowly
    store.upsert(batch(rows(n), CONFIG))
    steps: list[int] = []
    whole = verify_store(store, progress=steps.append)
    assert (whole.intact, whole.records, whole.total, whole.unsigned) == (True, n, n, 0)
    assert steps == ([512, 700] if n == 700 else [60])
    assert verify_store(store, sample=20).records == 20
    assert verify_store(store, sample=9999).records == n
    with pytest.raises(ConfigurationError, match="sample=0"):
        verify_store(store, sample=0)
    store.close()


def test_random_flips_are_refused_or_found_or_change_nothing(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "whole", CONFIG) as store:
        store.upsert(batch(rows(100), CONFIG))
        right = answers(store)
    files = sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file() and path.stat().st_size)
    holding = [
        path for path in files if {"payload_storage", "vectors", "store"} & set(path.parts) or "mappings" in path.name
    ]
    draw, folders = random.Random(7), []
    for i in range(FLIPS):
        folders.append(tmp_path / str(i))
        copied(tmp_path / "whole", folders[-1])
        flip(folders[-1] / draw.choice(holding if i % 2 else files).relative_to(tmp_path / "whole"), draw)
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    tally: Counter[str] = Counter()
    left = [str(folder) for folder in folders]
    while left:  # a folder on which the engine ends the whole process is refused, too
        asked = subprocess.run(
            [sys.executable, "-c", ASK, *left],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        told = [json.loads(line) for line in asked.stdout.splitlines()]
        assert asked.returncode == 0 or (asked.returncode < 0 and len(told) < len(left)), asked.stderr
        for folder, (outcome, given) in zip(left, told, strict=False):
            tally[outcome] += 1
            assert outcome != "nothing" or given == right, folder
        tally["crash"] += len(told) < len(left)
        left = left[len(told) + 1 :]
    assert tally["crash"] == 0
    assert tally["found"] + tally["refused"] > 0


def copied(source: Path, target: Path) -> None:
    """Copy a folder whose files are mostly holes."""
    for path in source.rglob("*"):
        made = target / path.relative_to(source)
        if path.is_dir():
            made.mkdir(parents=True)
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file, made.open("wb") as out:
            end = at = 0
            while (end := path.stat().st_size) > at:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                out.seek(at)
                file.seek(at)
                out.write(file.read(hole - at))
                at = hole
            out.truncate(end)


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit, of a byte that says something."""
    with path.open("r+b") as file:
        content = file.read()
        used = np.flatnonzero(np.frombuffer(content, np.uint8))
        at = int(draw.choice(used.tolist())) if len(used) else draw.randrange(len(content))
        file.seek(at)
        file.write(bytes([content[at] ^ 1 << draw.randrange(8)]))


def changed(**values: Any) -> Record:
    row = rows(1)[0]
    sparse = SparseVector(np.array(sorted(row.sparse), np.int32), np.ones(6, np.float32))
    dense = np.array([0.6, 0.8, 0, 0], np.float32)
    written = Record("a", "text", {"n": 1}, {}, dense, sparse)
    return dataclasses.replace(written, **{"checksum": checksum(written), **values})


class Damaged(MemoryStore):
    """A store that gives back another record than was written."""

    def __init__(self, record: Record) -> None:
        super().__init__(CONFIG)
        self._records = {"a": record}

    def scroll(self, *args: Any, **options: Any) -> Any:
        assert self._records is not None
        return list(self._records.values()), None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": "texu"}, "differs from what was written"),
        ({"metadata": {"n": 3}}, "differs from what was written"),
        ({"provenance": {"hash": "x"}}, "differs from what was written"),
        ({"dense": np.array([0.6, 0.8, 1e-9, 0], np.float32)}, "differs from what was written"),
        ({"tokens": b"\x01\0\0\0\x05"}, "differs from what was written"),
        ({"checksum": None, "dense": np.array([0.6, 0.9, 0, 0], np.float32)}, "length 1"),
        ({"checksum": None, "dense": np.array([np.nan, 0.9, 0, 0], np.float32)}, "length 1"),
        ({"id": "b"}, "not found by its id"),
    ],
)
def test_what_was_not_written_is_told_and_goes_nowhere(values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    store = Damaged(changed(**values))
    assert any(reason in damage.reason for damage in verify_store(store).damages)
    if "id" not in values:
        with pytest.raises(StoreEngineError, match=reason):
            copy_store(store, MemoryStore(CONFIG))
        with pytest.raises(StoreEngineError, match=reason):
            export_store(store, tmp_path / "x.jsonl")
        assert list(tmp_path.iterdir()) == []


def test_records_without_a_checksum_are_counted(tmp_path: Path) -> None:
    found = verify_store(Damaged(changed(checksum=None)))
    assert found.unsigned == 1


def test_the_command(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(rows(30), CONFIG))
    ended = CliRunner().invoke(app, ["store", "verify", str(tmp_path / "s")])
    assert (ended.exit_code, ended.stdout) == (0, "30 of 30 records read: intact\n")
    (vectors,) = (tmp_path / "s").glob("shard/segments/*/vector_storage-dense/vectors/chunk_0.mmap")
    with vectors.open("r+b") as file:
        file.seek(16 * 7)  # the eighth record's, in the engine's own order
        file.write(np.float32(0.5).tobytes())
    ended = CliRunner().invoke(app, ["store", "verify", str(tmp_path / "s"), "--json"])
    assert ended.exit_code == 1
    told = json.loads(ended.stdout)
    assert [damage["reason"] for damage in told["damages"]] == ["its content differs from what was written"]

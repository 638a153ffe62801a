"""One process writes into a folder, others read it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreClosedError,
    StoreNotFoundError,
    StoreReadOnlyError,
)
from twinvec_stores import And, DenseQuery, EmbeddedStore, RecordBatch, StoreConfig, open_store, verify_store
from twinvec_stores.engines.embedded import snapshots

CONFIG = StoreConfig(fingerprint="f", dim=4, sparse=False)
# writes batches of ten records each until its standard input ends, and says so after each
WRITER = """
import sys
from pathlib import Path
from stores.test_readers import CONFIG, batch
from twinvec_stores import EmbeddedStore
with EmbeddedStore(Path(sys.argv[1]), CONFIG) as store:
    for number, line in enumerate(sys.stdin):
        store.upsert(batch(number))
        print(number, flush=True)
"""
READER = """
import sys, time
from twinvec_stores import EmbeddedStore
store = EmbeddedStore(sys.argv[1], read_only=True)
print(store.count(), flush=True)
sys.stdin.read()
"""


def batch(number: int) -> RecordBatch:
    """Ten records that only together are right: all have the number of the last batch in their metadata."""
    ids = [f"r{number}-{i}" for i in range(10)] + ["latest"]
    vectors = np.random.default_rng(number).standard_normal((11, 4)).astype(np.float32)
    return RecordBatch(ids, ids, vectors, None, [{"number": number}] * 11)


def process(code: str, folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "readers").iterdir() if path.is_dir()]


def test_a_reader_sees_what_another_process_has_written(tmp_path: Path) -> None:
    with process(WRITER, tmp_path / "s") as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None

        def write(number: int) -> None:
            print(file=writer.stdin, flush=True)
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) == number

        write(0)
        with EmbeddedStore(tmp_path / "s", CONFIG, read_only=True) as reader:
            assert reader.count() == 11
            write(1)
            assert reader.count() == 11
            reader.refresh()
            assert reader.count() == 21
            assert len(copies(tmp_path / "s")) == 1
            (latest,) = reader.get(["latest"], with_vectors=True)
            assert latest.metadata == {"number": 1}
            (hits,) = reader.search([DenseQuery(batch(1).dense[10])], limit=1)  # type: ignore[index]
            assert hits[0].id == "latest"
            assert verify_store(reader).intact
        assert copies(tmp_path / "s") == []
        write(2)  # the writer has noticed nothing
        writer.stdin.close()
    with EmbeddedStore(tmp_path / "s") as store:
        assert store.count() == 31


def test_no_snapshot_is_taken_in_the_middle_of_a_write(tmp_path: Path) -> None:
    with process(WRITER, tmp_path / "s") as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        print(file=writer.stdin, flush=True)
        writer.stdout.readline()
        writer.stdin.write("\n" * 300)
        writer.stdin.flush()
        with EmbeddedStore(tmp_path / "s", read_only=True) as reader:
            seen = []
            for _ in range(8):
                reader.refresh()
                (latest,) = reader.get(["latest"])
                seen.append(latest.metadata["number"])
                assert reader.count() == 10 * (seen[-1] + 1) + 1
        assert seen == sorted(seen)
        writer.stdin.close()
        writer.stdout.read()


def test_a_reader_beside_a_writer_of_the_same_process_and_beside_none(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(0))
        with open_store(tmp_path / "s", read_only=True) as reader:
            store.delete(filter=And())
            assert (store.count(), reader.count()) == (0, 11)
            store.refresh()  # nothing to do
    with EmbeddedStore(tmp_path / "s", read_only=True) as first, EmbeddedStore(tmp_path / "s", read_only=True) as other:
        assert (first.count(), other.count()) == (0, 0)
        assert len(copies(tmp_path / "s")) == 2


def test_what_a_reader_does_not_do(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        EmbeddedStore(tmp_path / "s", CONFIG, read_only=True)
    assert not (tmp_path / "s").exists()
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(0))
    with pytest.raises(FingerprintMismatchError):
        EmbeddedStore(tmp_path / "s", StoreConfig(fingerprint="g", dim=4, sparse=False), read_only=True)
    assert copies(tmp_path / "s") == []
    reader = EmbeddedStore(tmp_path / "s", read_only=True)
    writes: list[Callable[[], None]] = [
        lambda: reader.upsert(batch(1)),
        lambda: reader.delete(["latest"]),
        lambda: reader.delete(filter=And()),
        reader.optimize,
    ]
    for write in writes:
        with pytest.raises(StoreReadOnlyError, match="read_only=True"):
            write()
    reader.flush()
    again = pickle.loads(pickle.dumps(reader))
    assert (again.read_only, again.count()) == (True, 11)
    again.close()
    reader.close()
    for call in (reader.count, reader.refresh):
        with pytest.raises(StoreClosedError):
            call()
    with pytest.raises(ConfigurationError, match="read_only"):
        open_store("http://localhost", read_only=True)


def test_the_copies_of_killed_readers_are_removed(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(0))
        with process(READER, tmp_path / "s") as killed, process(READER, tmp_path / "s") as alive:
            assert killed.stdout is not None
            assert alive.stdout is not None
            assert (killed.stdout.readline(), alive.stdout.readline()) == ("11\n", "11\n")
            killed.kill()
            killed.wait()
            assert len(copies(tmp_path / "s")) == 2
            with EmbeddedStore(tmp_path / "s", read_only=True):
                assert len(copies(tmp_path / "s")) == 2  # of the living one, and its own
            alive.communicate()
        assert copies(tmp_path / "s") == []


def test_searches_go_on_while_a_reader_is_refreshed(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", CONFIG) as store:
        store.upsert(batch(0))
        with EmbeddedStore(tmp_path / "s", read_only=True) as reader:
            done, failures = threading.Event(), []

            def ask() -> None:
                while not done.is_set():
                    try:
                        assert reader.count() == len(reader.search([DenseQuery(np.ones(4, np.float32))], limit=99)[0])
                    except Exception as error:
                        failures.append(error)

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(8):
                reader.refresh()
            done.set()
            for thread in threads:
                thread.join()
    assert failures == []


def test_a_copy_that_its_reader_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedStore(tmp_path / "store", CONFIG) as store:
        store.upsert(batch(0))
    copy = tmp_path / "store" / "readers" / "0"
    copy.mkdir(parents=True)

    class Lock(FileLock):
        def _acquire(self) -> None:  # when it has looked for the folder, and before it makes its file there
            if Path(self.lock_file).parent == copy:
                copy.rmdir()
            super()._acquire()

    monkeypatch.setattr(snapshots, "FileLock", Lock)
    with EmbeddedStore(tmp_path / "store", read_only=True) as reader:
        assert reader.count() == 11
    assert not copy.exists()

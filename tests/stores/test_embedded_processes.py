"""The embedded store between processes, with an engine that fails, and with a disk that does."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge

from stores.embedded import CALLS, CONFIG, ROWS, contents, filled, is_locked, posix, python
from stores.oracle import Row, batch, sparse_query
from twinvec.errors import (
    StoreClosedError,
    StoreEngineError,
    StoreLockedError,
)
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.filters.conditions import Eq

root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None, reason="only root on Linux may mount"
)


# processes


WRITER = """
import sys
import numpy as np
from twinvec.vectors import SparseBatch
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.records import RecordBatch

store = EmbeddedStore(sys.argv[1], StoreConfig(fingerprint="one", dim=4, idf=True, fields={"i": "integer"}))
step = int(sys.argv[2])
while True:
    ids = [f"{step}-{i}" for i in range(40)]
    dense = np.roll(np.eye(4, dtype=np.float32)[[0] * 40], step, axis=1)
    sparse = SparseBatch.from_dicts([{step: 1.0 + i} for i in range(40)])
    store.upsert(RecordBatch(ids, ["x" * 2000 + id for id in ids], dense, sparse, [{"i": step}] * 40))
    store.delete([f"{step}-0"])
    print(step, flush=True)
    step += 1
"""


def written(step: int, i: int) -> Row:
    dense = tuple(np.roll([1.0, 0.0, 0.0, 0.0], step).tolist())
    return Row(f"{step}-{i}", "x" * 2000 + f"{step}-{i}", {"i": step}, {}, dense, {step: 1.0 + i})


@posix
def test_a_killed_writer_loses_nothing_that_it_acknowledged(folder: Path) -> None:
    acknowledged: list[int] = []
    begun = 0
    for more in (1, 9, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(begun)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert child.stdout is not None
        for _ in range(more):
            acknowledged.append(int(child.stdout.readline()))
        child.kill()  # somewhere in the next step
        acknowledged += map(int, child.stdout.read().split())
        child.wait()
        child.stdout.close()
        begun = acknowledged[-1] + 2
        with EmbeddedStore(folder) as store:
            found = {r.id: r for r in contents(store)}
            expected = {f"{step}-{i}": written(step, i) for step in acknowledged for i in range(1, 40)}
            assert {id: found.get(id) for id in expected} == expected
            for id in found.keys() - expected.keys():  # of steps that were not acknowledged, whole records only
                step, i = map(int, id.split("-"))
                assert step not in acknowledged
                assert found[id] == written(step, i)
            [hits] = store.search([sparse_query({acknowledged[-1]: 1.0})], limit=2, filter=Eq("i", acknowledged[-1]))
            assert [hit.id for hit in hits] == [f"{acknowledged[-1]}-39", f"{acknowledged[-1]}-38"]
            frequencies = store.document_frequencies(np.array(acknowledged, np.int32)).tolist()
            assert frequencies == [39] * len(acknowledged)


def test_a_copy_of_an_open_folder_is_one_of_a_killed_process(folder: Path, tmp_path: Path) -> None:
    filled(folder).close()
    copies = 0
    with EmbeddedStore(folder) as store:
        for change in ("upsert", "flush", "delete", "optimize", "upsert"):
            CALLS[change](store)
            copies += 1
            shutil.copytree(folder, tmp_path / f"copy {copies}")
            with EmbeddedStore(tmp_path / f"copy {copies}") as copy:
                assert contents(copy) == contents(store)
    assert copies == 5


def in_child(work: Callable[[], str]) -> str:
    """What a forked child answers; it must not hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 30)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answer = os.read(reading, 10_000).decode()
    os.close(reading)
    return answer


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_must_open_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    store = filled(folder)
    for call in ("count", "upsert", "search", "optimize"):
        answer = in_child(lambda call=call: str(CALLS[call](store)))  # type: ignore[misc]
        assert answer.startswith("StoreEngineError")
        assert "before this process was forked" in answer
    assert in_child(lambda: str(EmbeddedStore(folder).count())).startswith("StoreLockedError")
    assert in_child(lambda: str(len(contents(filled(tmp_path / "own"))))) == "5"
    in_child(lambda: str(store.close()))  # type: ignore[func-returns-value]
    assert is_locked(folder)
    store.upsert(batch([Row("more")], CONFIG))
    store.close()
    assert EmbeddedStore(folder).count() == 6


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_another_thread_opens_a_store_does_not_hang(tmp_path: Path) -> None:
    enough, begun = threading.Event(), threading.Event()

    def open_stores() -> None:
        while not enough.is_set():
            with contextlib.suppress(StoreLockedError):  # while a child lives that was forked when it was open
                EmbeddedStore(tmp_path / "busy", CONFIG).close()
            begun.set()

    opening = threading.Thread(target=open_stores)
    opening.start()
    try:
        assert begun.wait(30)
        answers = [in_child(lambda i=i: str(filled(tmp_path / str(i)).count())) for i in range(3)]  # type: ignore[misc]
    finally:
        enough.set()
        opening.join(30)
    assert answers == ["5", "5", "5"]


# an engine that fails


class PanicException(BaseException):
    """What pyo3 raises for a panic is no Exception."""


class Shard:
    """The engine, with one failure to come."""

    coming: BaseException | None = None
    waits: threading.Event | None = None
    entered = threading.Event()

    def __init__(self, shard: qdrant_edge.EdgeShard) -> None:
        self._shard = shard

    @classmethod
    def load(cls, path: str) -> Shard:
        return cls(qdrant_edge.EdgeShard.load(path))

    def __getattr__(self, name: str) -> Any:
        if name in ("count", "update", "query_batch") and Shard.coming is not None:
            coming, Shard.coming = Shard.coming, None
            raise coming
        if name == "scroll" and Shard.waits is not None:
            Shard.entered.set()
            Shard.waits.wait(30)
        return getattr(self._shard, name)


@pytest.fixture
def failing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedStore]:
    filled(folder).close()
    real = qdrant_edge.EdgeShard
    fake = type("Fake", (Shard,), {"load": classmethod(lambda cls, path: cls(real.load(path)))})
    with monkeypatch.context() as patch:
        patch.setattr(qdrant_edge, "EdgeShard", fake)
        store = EmbeddedStore(folder)
    yield store
    Shard.coming = Shard.waits = None
    Shard.entered.clear()
    store.close()


@pytest.mark.parametrize("call", ["upsert", "delete", "count_where", "search", "document_frequencies"])
def test_a_panic_is_typed_and_remembered(failing: EmbeddedStore, folder: Path, call: str) -> None:
    Shard.coming = PanicException("called `Option::unwrap()` on a `None` value")
    with pytest.raises(StoreEngineError, match="the engine failed: called `Option::unwrap"):
        CALLS[call](failing)
    for later in ("scroll", "upsert", "flush", "search", "optimize"):
        with pytest.raises(StoreEngineError, match=r"failed earlier \(called.*open it again"):
            CALLS[later](failing)
    failing.close()
    assert contents(EmbeddedStore(folder)) == ROWS


def test_an_engines_error_is_typed_and_passes(failing: EmbeddedStore, folder: Path) -> None:
    Shard.coming = Exception("Service runtime error: something")
    with pytest.raises(StoreEngineError, match=f"{folder}: Service runtime error: something"):
        failing.count(Eq("i", 1))
    assert contents(failing) == ROWS


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_none_of_the_engines(failing: EmbeddedStore, interruption: type[BaseException]) -> None:
    Shard.coming = interruption()
    with pytest.raises(interruption):
        failing.upsert(batch(ROWS, CONFIG))
    assert contents(failing) == ROWS


def until_closed(store: EmbeddedStore) -> None:
    """Return when another thread has begun to close a store."""
    with contextlib.suppress(StoreClosedError):
        while True:
            store.count()


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_closing_waits_for_what_runs_and_a_fork_meanwhile_does_not_hang(failing: EmbeddedStore, folder: Path) -> None:
    Shard.waits = threading.Event()
    told: list[Any] = []
    asking = threading.Thread(target=lambda: told.extend(failing.scroll()[0]))
    asking.start()
    assert Shard.entered.wait(30)
    closing = threading.Thread(target=failing.close)
    closing.start()
    until_closed(failing)
    other = folder.parent / "other"
    assert len(contents(filled(other))) == 5  # another folder can be opened meanwhile
    assert closing.is_alive()
    assert in_child(lambda: str(failing.count())).startswith("StoreClosedError")
    assert in_child(lambda: str(filled(folder.parent / "third").count())) == "5"
    Shard.waits.set()
    asking.join(30)
    closing.join(30)
    assert not closing.is_alive()
    assert len(told) == 5
    assert not is_locked(folder)


# the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 120 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


FILLER = """
import sys
import numpy as np
from twinvec.errors import StoreEngineError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.records import RecordBatch

with EmbeddedStore(sys.argv[1], StoreConfig(fingerprint="one", dim=4, sparse=False)) as store:
    for step in range(1000):
        ids = [f"{step}-{i}" for i in range(50)]
        try:
            store.upsert(RecordBatch(ids, ["x" * 20_000] * 50, np.ones((50, 4), np.float32)))
        except StoreEngineError as error:
            print(step, store.count(), error)
            break
"""


@root
def test_a_full_disk_is_an_error_and_not_the_end(small_disk: Path) -> None:
    outcome = python(FILLER, str(small_disk / "store"))  # in a process of its own, which the engine could end
    assert outcome.returncode == 0, outcome.stderr
    steps, records, message = outcome.stdout.split(maxsplit=2)
    assert int(steps) > 0
    assert int(records) == 50 * int(steps)
    assert "disk is nearly full" in message
    ballast(small_disk, 2 * 2**20)
    with pytest.raises(StoreEngineError, match="disk is nearly full"):
        EmbeddedStore(small_disk / "another", CONFIG)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    with EmbeddedStore(small_disk / "store") as store:
        assert store.count() == int(records)
        assert store.scroll(limit=1)[0][0].text == "x" * 20_000


READER = """
import sys
import numpy as np
from twinvec.errors import StoreEngineError
from twinvec_stores import DenseQuery, EmbeddedStore
try:
    with EmbeddedStore(sys.argv[1]) as store:
        found = store.search([DenseQuery(np.ones(4, np.float32))], limit=9)[0]
        read = [record.text for page in store.scroll_all() for record in page]
        try:
            store.delete(["r0"])
        except StoreEngineError as error:
            print(len(found), len(read), len(store.get(["r3"])), error)
except StoreEngineError as error:
    print("refused", error)
"""


def ballast(disk: Path, left: int) -> None:
    """Fill a disk but for so many bytes."""
    with (disk / "ballast").open("wb") as file:
        for size in (2**20, 2**12):
            while shutil.disk_usage(disk).free >= left + size:
                file.write(bytes(size))
                file.flush()


@root
@pytest.mark.parametrize("file_system", ["ext4", "tmpfs"])
@pytest.mark.parametrize("free", [0, 2**20, 2**24])
def test_a_nearly_full_disk_can_be_read(file_system: str, free: int, tmp_path: Path) -> None:
    """Where the engine needs room only to open its files, as on tmpfs, that is told, and ends no process."""
    place = tmp_path / "disk"
    place.mkdir()
    if file_system == "ext4":
        with (tmp_path / "image").open("wb") as image:
            image.truncate(200 * 2**20)
        made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(tmp_path / "image")], check=False)
        mount = ["mount", "-o", "loop", str(tmp_path / "image"), str(place)]
    else:
        mount, made = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place)], None
    if (made is not None and made.returncode) or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        with filled(place / "store") as store:
            before = contents(store)
        ballast(place, free)
        ended = python(READER, str(place / "store"))
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "the disk is nearly full" in ended.stdout
        if file_system == "ext4":
            assert ended.stdout.startswith(f"{len(ROWS)} {len(ROWS)} 1 ")
        (place / "ballast").unlink()
        with EmbeddedStore(place / "store") as store:
            assert contents(store) == before
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@root
def test_a_disk_that_cannot_be_written_is_an_engine_error(small_disk: Path) -> None:
    filled(small_disk / "store").close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreEngineError, match=r"[Rr]ead-only"):
        EmbeddedStore(small_disk / "store")
    with pytest.raises(StoreEngineError, match=r"[Rr]ead-only"):
        EmbeddedStore(small_disk / "another", CONFIG)


def test_records_longer_than_a_part_of_the_log_survive(folder: Path) -> None:
    config = replace(CONFIG, sparse=False, idf=False)
    text = "0123456789abcdef" * (34 * 2**16)  # 34 MB, a part has 32
    with EmbeddedStore(folder, config) as store:
        store.upsert(batch([Row("long", text), Row("short", "x")], config))
    with EmbeddedStore(folder) as store:
        assert [r.text == expected for r, expected in zip(store.get(["long", "short"]), [text, "x"], strict=True)] == [
            True,
            True,
        ]

"""A store in a folder: who may open it, what survives, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
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
from filelock import FileLock, Timeout

from stores.oracle import Row, batch, dense_query, row, sparse_query
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreClosedError,
    StoreEngineError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec.vectors import SparseBatch
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.filters.conditions import And, Eq
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import RecordBatch

CONFIG = StoreConfig(fingerprint="one", model="models/one", dim=4, idf=True, fields={"i": "integer"})
ROWS = [Row(f"r{i}", f"text {i}", {"i": i}, {"file": "a.txt"}, sparse={i % 3: 1.0}) for i in range(5)]
Vectors = np.ndarray[Any, np.dtype[np.float32]]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None, reason="only root on Linux may mount"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def filled(folder: Path, config: StoreConfig = CONFIG) -> EmbeddedStore:
    store = EmbeddedStore(folder, config)
    store.upsert(batch(ROWS, config))
    return store


def contents(store: HybridStore) -> list[Row]:
    rows = [row(r) for page in store.scroll_all(with_vectors=True) for r in page]
    return sorted(rows, key=lambda r: r.id)


def is_locked(folder: Path) -> bool:
    try:
        FileLock(folder / "lock").acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# opening and making


def test_what_was_written_is_there_when_it_is_opened_again(folder: Path) -> None:
    filled(folder).close()
    with EmbeddedStore(folder) as store:
        assert store.config == CONFIG
        assert contents(store) == ROWS
        store.delete(["r0"])
    with EmbeddedStore(str(folder), CONFIG) as store:
        assert contents(store) == ROWS[1:]


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_opening_makes_nothing_where_nothing_is(tmp_path: Path, below: str) -> None:
    with pytest.raises(StoreNotFoundError, match="no store"):
        EmbeddedStore(tmp_path / below)
    assert list(tmp_path.iterdir()) == []


def test_missing_parents_are_made(tmp_path: Path) -> None:
    filled(tmp_path / "a" / "b" / "c").close()
    assert contents(EmbeddedStore(tmp_path / "a" / "b" / "c")) == ROWS


def test_another_process_is_refused_and_told_why(folder: Path) -> None:
    code = "import sys; from twinvec_stores.engines.embedded.store import EmbeddedStore; EmbeddedStore(sys.argv[1])"
    with filled(folder) as store:
        outcome = python(code, str(folder))
        assert outcome.returncode == 1
        last = outcome.stderr.strip().splitlines()[-1]
        assert last.startswith(f"twinvec.errors.StoreLockedError: {folder} is open in another process")
        assert contents(store) == ROWS
    assert python(code, str(folder)).returncode == 0


def test_one_process_shares_one_engine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EmbeddedStore(folder, CONFIG)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    second, third = EmbeddedStore("store"), EmbeddedStore(tmp_path / "link", CONFIG)
    first.upsert(batch(ROWS[:2], CONFIG))
    second.upsert(batch(ROWS[2:], CONFIG))
    assert contents(first) == contents(second) == contents(third) == ROWS
    first.close()
    second.close()
    second.close()  # which must not close it for the third
    assert contents(third) == ROWS
    assert is_locked(folder)
    third.close()
    assert not is_locked(folder)


def test_a_store_that_is_forgotten_gives_the_folder_back(folder: Path) -> None:
    store = filled(folder)
    del store
    gc.collect()
    assert not is_locked(folder)
    assert contents(EmbeddedStore(folder)) == ROWS


def test_another_model_is_refused_and_both_are_named(folder: Path) -> None:
    other = replace(CONFIG, fingerprint="two", model="models/two")
    open_one = filled(folder)
    for _ in range(2):  # while it is open, and when it is not
        with pytest.raises(FingerprintMismatchError) as caught:
            EmbeddedStore(folder, other)
        assert (caught.value.stored, caught.value.given) == ("one", "two")
        assert [w for w in ("one", "two", "models/one", "models/two", str(folder)) if w not in str(caught.value)] == []
        open_one.close()
    assert contents(EmbeddedStore(folder)) == ROWS


OTHERS: list[tuple[StoreConfig, str]] = [
    (replace(CONFIG, dim=8), "dim=4 instead of 8"),
    (replace(CONFIG, dim=None), "dim=4 instead of None"),
    (replace(CONFIG, sparse=False, idf=False), "sparse=True instead of False"),
    (replace(CONFIG, idf=False), "idf=True instead of False"),
    (replace(CONFIG, fields={"i": "float"}), "fields"),
    (replace(CONFIG, fields={"i": "integer", "j": "integer"}), "fields"),
    (replace(CONFIG, quantization="int8"), "quantization=None instead of 'int8'"),
]


@pytest.mark.parametrize(("other", "words"), OTHERS)
def test_other_settings_are_refused(folder: Path, other: StoreConfig, words: str) -> None:
    with filled(folder), pytest.raises(StoreMismatchError, match=words):
        EmbeddedStore(folder, other)
    with pytest.raises(StoreMismatchError, match=words):
        EmbeddedStore(folder, other)
    with EmbeddedStore(folder, replace(CONFIG, fields={})) as store:  # they are the store's own affair
        assert store.config == CONFIG
        assert contents(store) == ROWS


def test_another_schema_version_is_refused(folder: Path) -> None:
    filled(folder).close()
    data = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**data, "schema_version": 3, "new": 1}))
    with pytest.raises(StoreMismatchError, match="schema version 3, this TwinVec reads 2"):
        EmbeddedStore(folder)


def test_a_store_with_fingerprints_of_samples_is_refused_with_the_reason(folder: Path) -> None:
    filled(folder).close()
    data = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**data, "schema_version": 1}))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match=r"samples of their weights.*[Ii]ngest the documents"):
            EmbeddedStore(folder, config)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"{",
        lambda data: b"\xff\xfe",
        lambda data: b"null",
        lambda data: b"[1]",
        lambda data: json.dumps(data)[:-20].encode(),
        lambda data: json.dumps({**data, "unknown": 1}).encode(),
        lambda data: json.dumps({k: v for k, v in data.items() if k != "dim"}).encode(),
        lambda data: json.dumps({**data, "dim": "four"}).encode(),
        lambda data: json.dumps({**data, "fields": None}).encode(),
        lambda data: json.dumps({**data, "fields": ["i"]}).encode(),
        lambda data: json.dumps({**data, "fields": {"a..b": "float"}}).encode(),
        lambda data: json.dumps({**data, "quantization": "int4"}).encode(),
    ],
)
def test_a_damaged_configuration_is_refused(folder: Path, damage: Callable[[Any], bytes]) -> None:
    filled(folder).close()
    whole = (folder / "store.json").read_bytes()
    (folder / "store.json").write_bytes(damage(json.loads(whole)))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match=str(folder)):
            EmbeddedStore(folder, config)
    (folder / "store.json").write_bytes(whole)
    assert contents(EmbeddedStore(folder)) == ROWS


def test_a_missing_shard_is_refused(folder: Path) -> None:
    filled(folder).close()
    (folder / "shard").rename(folder.parent / "elsewhere")
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="lacks its folder shard"):
            EmbeddedStore(folder, config)
    (folder.parent / "elsewhere").rename(folder / "shard")
    assert contents(EmbeddedStore(folder)) == ROWS


def test_an_unreadable_shard_is_an_engine_error(folder: Path) -> None:
    filled(folder).close()
    shutil.rmtree(folder / "shard")
    (folder / "shard").mkdir()
    with pytest.raises(StoreEngineError, match=str(folder)):
        EmbeddedStore(folder)
    assert not is_locked(folder)


def test_a_folder_of_other_files_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"other files \(thesis.tex\)"):
        EmbeddedStore(folder, CONFIG)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for config in (None, CONFIG):
        with pytest.raises(ConfigurationError, match="is a file"):
            EmbeddedStore(tmp_path / "file", config)
    with pytest.raises(StoreEngineError, match="below"):
        EmbeddedStore(tmp_path / "file" / "below", CONFIG)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_store_that_was_hardly_made_is_made_again(folder: Path) -> None:
    EmbeddedStore(folder, CONFIG).close()
    (folder / "store.json").rename(folder / "store.json.new")  # killed before the last step
    (folder / "shard.new").mkdir()
    (folder / "shard.new" / "half").write_text("made")
    with pytest.raises(StoreNotFoundError):
        EmbeddedStore(folder)
    other = replace(CONFIG, dim=8, fields={})
    with EmbeddedStore(folder, other) as store:
        rows = [replace(r, dense=(1.0,) + (0.0,) * 7) for r in ROWS]
        store.upsert(batch(rows, other))
    assert contents(EmbeddedStore(folder)) == rows
    assert not (folder / "shard.new").exists()


def test_records_without_a_configuration_are_not_thrown_away(folder: Path) -> None:
    filled(folder).close()
    (folder / "store.json").rename(folder.parent / "kept.json")
    with pytest.raises(StoreMismatchError, match="records"):
        EmbeddedStore(folder, CONFIG)
    (folder.parent / "kept.json").rename(folder / "store.json")
    assert contents(EmbeddedStore(folder)) == ROWS


def test_what_a_killed_optimizer_left_is_removed(folder: Path) -> None:
    filled(folder).close()
    left = folder / "shard" / "temp_segments" / "segment_builder_x"
    left.mkdir(parents=True)
    (left / "vectors").write_bytes(bytes(10_000))
    with EmbeddedStore(folder) as store:
        assert not left.exists()
        assert contents(store) == ROWS


def test_the_engine_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[embedded\]'"):
        EmbeddedStore(folder, CONFIG)
    assert not folder.exists()


# closing

CALLS: dict[str, Callable[[Any], Any]] = {
    "upsert": lambda store: store.upsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.delete(["r0"]),
    "delete_where": lambda store: store.delete(filter=And()),
    "get": lambda store: store.get(["r0"]),
    "count": lambda store: store.count(),
    "count_where": lambda store: store.count(Eq("i", 1)),
    "scroll": lambda store: store.scroll(),
    "scroll_all": lambda store: list(store.scroll_all()),
    "search": lambda store: store.search([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.document_frequencies(np.array([1], np.int32)),
    "info": lambda store: store.info(),
    "flush": lambda store: store.flush(),
    "optimize": lambda store: store.optimize(),
    "aupsert": lambda store: asyncio.run(store.aupsert(batch(ROWS, CONFIG))),
    "asearch": lambda store: asyncio.run(store.asearch([dense_query(1, 0, 0, 0)], limit=1)),
    "aoptimize": lambda store: asyncio.run(store.aoptimize()),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_says_so(folder: Path, call: str) -> None:
    store = filled(folder)
    CALLS[call](store)
    store.count()
    store.close()
    store.close()
    asyncio.run(store.aclose())
    with pytest.raises(StoreClosedError, match=str(folder)):
        CALLS[call](store)
    other = EmbeddedStore(folder)  # the folder being open again does not open the store again
    with pytest.raises(StoreClosedError, match=str(folder)):
        CALLS[call](store)
    other.close()


def test_a_pickled_store_is_opened_again(folder: Path) -> None:
    store = filled(folder)
    pickled = pickle.dumps(store)
    shared = pickle.loads(pickled)
    assert contents(shared) == ROWS
    store.close()
    shared.close()
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).count())"
    assert python(code, pickled.hex()).stdout == "5\n"


def test_info_and_repr_tell_what_is_there(folder: Path) -> None:
    with filled(folder) as store:
        store.flush()
        info = store.info()
        assert (info.engine, info.location, info.records) == ("embedded", str(folder), 5)
        assert (info.has_graph, info.segments, info.config) == (False, 1, CONFIG)
        assert info.bytes is not None
        assert info.bytes > 5 * 16
        assert all(word in repr(store) for word in ("EmbeddedStore", str(folder), "models/one", "dim=4"))


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
        with pytest.raises(StoreEngineError, match=r"failed before \(called.*open it again"):
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


# optimizing

N, DIM = 1400, 2048  # above the engine's threshold of 10 MB
LARGE = StoreConfig(fingerprint="one", dim=DIM, fields={"i": "integer"})


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(40, DIM))
    rows = centres[generator.integers(0, 40, N)] + generator.normal(size=(N, DIM))
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def template(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with many records and no graph yet."""
    path = tmp_path_factory.mktemp("large") / "store"
    with EmbeddedStore(path, LARGE) as store:
        store.upsert(large_batch(vectors, range(N)))
    return path


def large_batch(vectors: Vectors, chosen: range) -> RecordBatch:
    return RecordBatch(
        [f"r{i}" for i in chosen],
        [f"text {i}" for i in chosen],
        vectors[list(chosen)],
        SparseBatch.from_dicts([{i % 7: 1.0 + i} for i in chosen]),
        [{"i": i} for i in chosen],
    )


@pytest.fixture
def large(template: Path, tmp_path: Path) -> Iterator[EmbeddedStore]:
    shutil.copytree(template, tmp_path / "store")
    with EmbeddedStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[Any]]:
    """Every child process that is started; they are looked after often."""
    monkeypatch.setattr("twinvec_stores.engines.embedded.folder._POLL_SECONDS", 0.01)
    started: list[subprocess.Popen[Any]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def assert_complete(store: EmbeddedStore, vectors: Vectors) -> None:
    assert store.count() == N
    records = store.get([f"r{i}" for i in range(N)], with_vectors=True)
    assert [(r.id, r.text, r.metadata) for r in records] == [(f"r{i}", f"text {i}", {"i": i}) for i in range(N)]
    stored = [r.dense for r in records if r.dense is not None]
    np.testing.assert_array_equal(np.stack(stored), vectors)
    assert [r.sparse.to_dict() for r in records if r.sparse is not None] == [{i % 7: 1.0 + i} for i in range(N)]


def check_rankings(store: EmbeddedStore, vectors: Vectors, *, exact: bool) -> None:
    chosen = list(range(0, 100, 5))
    rankings = store.search([dense_query(*vectors[i].tolist()) for i in chosen], limit=10, exact=exact)
    products = vectors[chosen].astype(np.float64) @ vectors.T.astype(np.float64)
    found = 0
    for hits, scores in zip(rankings, products, strict=True):
        assert [hit.score for hit in hits] == pytest.approx([scores[int(hit.id[1:])] for hit in hits], abs=1e-5)
        found += len({hit.id for hit in hits} & {f"r{i}" for i in np.argsort(-scores)[:10]})
    assert found >= (200 if exact else 195)


def test_a_graph_finds_what_an_exact_search_finds(
    large: EmbeddedStore, vectors: Vectors, children: list[subprocess.Popen[Any]]
) -> None:
    terms = sparse_query({3: 1.0, 5: 2.0})
    before = large.search([terms], limit=20)
    assert large.info().has_graph is False
    check_rankings(large, vectors, exact=False)
    steps: list[tuple[float, int]] = []
    large.optimize(lambda seconds, size: steps.append((seconds, size)))
    assert [child.returncode for child in children] == [0]
    assert max(size for _, size in steps) > 1_000_000
    assert steps == sorted(steps, key=lambda step: step[0])
    assert large.info().has_graph is True
    check_rankings(large, vectors, exact=False)
    check_rankings(large, vectors, exact=True)
    assert large.search([terms], limit=20) == before
    assert_complete(large, vectors)
    # what is written later is found beside the graph
    large.upsert(RecordBatch(["new"], ["x"], -vectors[:1], SparseBatch.from_dicts([{}])))
    large.delete(["r0"])
    near, far = large.search([dense_query(*(sign * vectors[0]).tolist()) for sign in (1, -1)], limit=N + 10)
    assert "r0" not in {hit.id for hit in near}
    assert far[0].id == "new"
    large.close()
    with EmbeddedStore(large.path) as again:
        assert again.info().has_graph is True
        assert again.count() == N


@posix
def test_a_killed_optimizer_loses_nothing(
    large: EmbeddedStore, vectors: Vectors, children: list[subprocess.Popen[Any]]
) -> None:
    def kill(seconds: float, size: int) -> None:
        if size:  # it is building the graph
            children[0].kill()

    with pytest.raises(StoreEngineError, match=r"optimize failed with status -9.*nothing was lost"):
        large.optimize(kill)
    assert large.info().has_graph is False
    assert_complete(large, vectors)
    check_rankings(large, vectors, exact=False)
    large.optimize()
    assert large.info().has_graph is True
    assert_complete(large, vectors)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_optimizer_is_stopped(
    large: EmbeddedStore,
    vectors: Vectors,
    children: list[subprocess.Popen[Any]],
    interruption: type[BaseException],
) -> None:
    def interrupt(seconds: float, size: int) -> None:
        if size:
            raise interruption

    with pytest.raises(interruption):
        large.optimize(interrupt)
    assert [child.returncode is None for child in children] == [False]
    assert_complete(large, vectors)
    large.upsert(RecordBatch(["new"], ["x"], -vectors[:1], SparseBatch.from_dicts([{}])))
    assert large.count() == N + 1


OPTIMIZER = """
import sys
from twinvec_stores.engines.embedded import folder as _folder
from twinvec_stores.engines.embedded.store import EmbeddedStore

_folder._POLL_SECONDS = 0.01
EmbeddedStore(sys.argv[1]).optimize(lambda seconds, size: size and print("going", flush=True))
"""


@posix
def test_an_optimizer_that_outlives_its_process_keeps_the_folder(
    template: Path, folder: Path, vectors: Vectors
) -> None:
    shutil.copytree(template, folder)
    owner = subprocess.Popen([sys.executable, "-c", OPTIMIZER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "going\n"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with pytest.raises(StoreLockedError, match="still being optimized"):
        EmbeddedStore(folder)
    FileLock(folder / "lock").acquire(timeout=120).lock.release()  # until it has finished
    with EmbeddedStore(folder) as store:
        assert store.info().has_graph is True
        assert_complete(store, vectors)


def test_others_wait_for_an_optimizer_and_close_ends_them(large: EmbeddedStore, vectors: Vectors) -> None:
    """Searches and writes in threads, while one optimizes and closes."""
    other = EmbeddedStore(large.path)
    begun = threading.Barrier(5)
    answered = [threading.Event() for _ in range(3)]
    errors: list[BaseException] = []

    def search(number: int) -> None:
        begun.wait(30)
        try:
            while True:
                [hits] = large.search([dense_query(*vectors[number].tolist())], limit=1)
                assert hits[0].id == f"r{number}"
                answered[number].set()
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        begun.wait(30)
        try:
            for i in range(20):
                other.upsert(large_batch(vectors, range(i, i + 1)))
                other.flush()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    begun.wait(30)
    large.optimize()
    assert all(event.wait(60) for event in answered)
    large.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert [type(error) for error in errors] == [StoreClosedError] * 3
    assert_complete(other, vectors)
    other.close()
    assert not is_locked(large.path)


def test_quantized_vectors_are_ranked_by_the_full_ones(folder: Path, vectors: Vectors) -> None:
    with EmbeddedStore(folder, replace(LARGE, quantization="int8")) as store:
        store.upsert(large_batch(vectors, range(N)))
        for _ in range(2):
            check_rankings(store, vectors, exact=False)
            check_rankings(store, vectors, exact=True)
            store.optimize()
        assert store.info().has_graph is True
        assert list((folder / "shard" / "segments").glob("*/vector_storage-dense/quantized.*"))
        assert_complete(store, vectors)


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
    (small_disk / "ballast").write_bytes(bytes(20_000_000))
    with pytest.raises(StoreEngineError, match="disk is nearly full"):
        EmbeddedStore(small_disk / "store")
    with pytest.raises(StoreEngineError, match="disk is nearly full"):
        EmbeddedStore(small_disk / "another", CONFIG)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    with EmbeddedStore(small_disk / "store") as store:
        assert store.count() == int(records)
        assert store.scroll(limit=1)[0][0].text == "x" * 20_000


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

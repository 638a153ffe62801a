"""The embedded store's optimizer: graphs, interruptions, and what may run meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from stores.embedded import is_locked, posix
from stores.oracle import dense_query, sparse_query
from twinvec.errors import (
    StoreClosedError,
    StoreEngineError,
    StoreLockedError,
)
from twinvec.vectors import SparseBatch
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.disk import folder_size
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.records import RecordBatch

Vectors = np.ndarray[Any, np.dtype[np.float32]]


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
    monkeypatch.setattr("twinvec_stores.engines.embedded.segments._POLL_SECONDS", 0.01)
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


def check_rankings(store: EmbeddedStore, vectors: Vectors, *, exact: bool, prefix: str = "r") -> None:
    chosen = list(range(0, 100, 5))
    rankings = store.search([dense_query(*vectors[i].tolist()) for i in chosen], limit=10, exact=exact)
    products = vectors[chosen].astype(np.float64) @ vectors.T.astype(np.float64)
    found = 0
    for hits, scores in zip(rankings, products, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(
            [scores[int(hit.id.removeprefix(prefix))] for hit in hits], abs=1e-5
        )
        found += len({hit.id for hit in hits} & {f"{prefix}{i}" for i in np.argsort(-scores)[:10]})
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

    with pytest.raises(StoreEngineError, match=r"optimizing failed with status -9.*nothing was lost"):
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
from twinvec_stores.engines.embedded import segments
from twinvec_stores.engines.embedded.store import EmbeddedStore

segments._POLL_SECONDS = 0.01
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


def test_searches_and_readers_go_on_while_it_is_optimized(
    large: EmbeddedStore, vectors: Vectors, children: list[subprocess.Popen[Any]]
) -> None:
    seen: list[bool] = []

    def look(seconds: float, size: int) -> None:
        if seen or children[0].poll() is not None:
            return
        children[0].send_signal(signal.SIGSTOP)  # it might be done before us
        proceed = threading.Timer(60, children[0].send_signal, [signal.SIGCONT])  # else who waits for it never ends
        proceed.start()
        try:
            check_rankings(large, vectors, exact=True)
            with EmbeddedStore(large.path, read_only=True) as reader:
                assert_complete(reader, vectors)
            seen.append(children[0].poll() is None)
        finally:
            proceed.cancel()
            children[0].send_signal(signal.SIGCONT)

    large.optimize(look)
    assert seen == [True]
    assert large.info().has_graph is True


@pytest.fixture
def two_segments(large: EmbeddedStore, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> EmbeddedStore:
    """N records in a segment that is full, and as many more of the opposite vectors."""
    monkeypatch.setattr("twinvec_stores.engines.embedded.segments.SEGMENT_BYTES", 11 * 2**20)
    monkeypatch.setattr("twinvec_stores.engines.embedded.folder._MAX_LOG", 2**12)
    large.upsert(RecordBatch(["-r0"], ["x"], -vectors[:1], SparseBatch.from_dicts([{}])))  # makes the log full
    opposite = large_batch(-vectors, range(1, N))
    large.upsert(RecordBatch([f"-{id}" for id in opposite.ids], opposite.texts, opposite.dense, opposite.sparse))
    return large


def test_a_full_segment_is_followed_by_another_and_each_has_a_graph(
    two_segments: EmbeddedStore, vectors: Vectors, children: list[subprocess.Popen[Any]]
) -> None:
    store = two_segments
    assert store.info().segments == 3  # both are full
    store.upsert(large_batch(vectors, range(0, N, 7)))  # in the older segment, where they are
    assert store.count() == 2 * N
    check_rankings(store, vectors, exact=False)
    folder = store.path / "shard" / "segments"

    def graphs() -> set[str]:
        return {path.parts[-3] for path in folder.glob("*/vector_index-dense/graph.bin")}

    def stop(seconds: float, size: int) -> None:
        if len(children) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.optimize(stop)
    [first] = graphs()  # what was finished before stays
    assert store.count() == 2 * N
    check_rankings(store, vectors, exact=False)
    store.optimize()
    assert len(children) == 3
    assert len(graphs()) == 2
    assert first in graphs()
    assert not {"optimizing", "optimized"} & {path.name for path in store.path.iterdir()}
    assert store.count() == 2 * N
    check_rankings(store, vectors, exact=False)
    check_rankings(store, -vectors, exact=True, prefix="-r")
    store.optimize()
    assert len(children) == 3  # nothing needs it


@pytest.mark.slow
def test_a_segment_with_many_deleted_records_is_rebuilt(
    large: EmbeddedStore, vectors: Vectors, children: list[subprocess.Popen[Any]]
) -> None:
    large.optimize()
    large.delete([f"r{i}" for i in range(1000, 1200)])
    large.optimize()
    assert len(children) == 1  # a seventh is not enough
    large.delete([f"r{i}" for i in range(1200, N)])
    before = folder_size(large.path / "shard" / "segments")
    large.optimize()
    assert len(children) == 2
    assert folder_size(large.path / "shard" / "segments") < 0.8 * before
    large.upsert(large_batch(vectors, range(1000, N)))
    assert_complete(large, vectors)
    check_rankings(large, vectors, exact=False)


@pytest.mark.slow
def test_a_half_done_replacement_is_completed_at_the_next_opening(
    large: EmbeddedStore, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed anywhere between the child's end and the last step."""
    monkeypatch.setattr("twinvec_stores.engines.embedded.folder.Folder._reopen", killed)
    with pytest.raises(StoreEngineError, match="killed"):
        large.optimize()
    large.close()
    old = {path.name for path in (large.path / "shard" / "segments").iterdir()}
    for step in ("nothing", "removed", "moved"):
        folder = large.path.with_name(step)
        shutil.copytree(large.path, folder)
        segments, result = folder / "shard" / "segments", folder / "optimized"
        replaced = (result / "replaced").read_text().split()
        assert set(replaced) <= old
        if step in ("removed", "moved"):
            shutil.rmtree(segments / replaced[0])
        if step == "moved":
            for made in (result / "segments").iterdir():
                made.rename(segments / made.name)
        with EmbeddedStore(folder) as store:
            assert store.info().has_graph is True
            assert_complete(store, vectors)
        assert not result.exists()


def test_a_result_that_was_not_taken_over_is_dropped_by_the_next_write(
    large: EmbeddedStore, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("twinvec_stores.engines.embedded.folder.Folder._reopen", killed)
        with pytest.raises(StoreEngineError):
            large.optimize()
    large.upsert(large_batch(-vectors, range(7)))
    large.close()
    with EmbeddedStore(large.path) as store:
        assert store.info().has_graph is False
        [record] = store.get(["r3"], with_vectors=True)
        np.testing.assert_array_equal(record.dense, -vectors[3])


def killed(_: object) -> None:
    raise StoreEngineError("killed")


def elastic(vectors: Vectors) -> Vectors:
    """Vectors whose first dims say most, as Matryoshka models make them."""
    rows = vectors * np.where(np.arange(DIM) < 256, 1.0, 0.1)
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize(
    ("quantization", "files"),
    [
        ("int8", {"vector_storage-dense": "quantized.data"}),
        ("binary", {"vector_storage-dense": "quantized.data"}),
        ("first_dim=256", {"vector_storage-first": "matrix.dat"}),
    ],
)
def test_the_best_of_a_first_pass_are_ranked_by_the_full_vectors(
    folder: Path, vectors: Vectors, quantization: str, files: dict[str, str]
) -> None:
    vectors = elastic(vectors)
    with EmbeddedStore(folder, replace(LARGE, quantization=quantization)) as store:
        store.upsert(large_batch(vectors, range(N)))
        for _ in range(2):
            check_rankings(store, vectors, exact=False)
            check_rankings(store, vectors, exact=True)
            store.optimize()
        assert store.info().has_graph is True
        assert_complete(store, vectors)
    [sealed] = {path.parents[1] for path in (folder / "shard").glob("segments/*/vector_index-*/graph.bin")}
    described = json.loads((sealed / "segment.json").read_text())["config"]["vector_data"]
    assert described["dense"]["storage_type"] == "Mmap"  # the full vectors are read from the disk
    for place, name in files.items():
        assert (
            0
            < (sealed / place / name).stat().st_size
            <= vectors.nbytes / {"int8": 3.9, "binary": 31}.get(quantization, 7.9)
        )
    with EmbeddedStore(folder) as store:
        assert store.config.quantization == quantization
        check_rankings(store, vectors, exact=False)

"""The embedded store's optimizer: graphs, interruptions, and what may run meanwhile."""

from __future__ import annotations

import shutil
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

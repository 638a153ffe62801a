"""Documents instead of chunks, scores that are too low, and views of a part: against all records, scored with numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.gte import build_gte
from twinvec import Embedder, SparseBatch
from twinvec.errors import ConfigurationError, InvalidRecordError
from twinvec_stores import (
    And,
    EmbeddedStore,
    Eq,
    HybridIndex,
    HybridStore,
    MemoryStore,
    Range,
    RecordBatch,
    ScopedStore,
    StoreConfig,
    ingest,
)

DRAW = np.random.default_rng(5)
N = 400
DENSE = DRAW.standard_normal((N, 64)).astype(np.float32)
DENSE[:300, 0] += 4  # the chunks of few documents fill the first places
DENSE /= np.linalg.norm(DENSE, axis=1, keepdims=True)
SPARSE = [
    {int(k): float(w) for k, w in zip(DRAW.choice(60, 5, False), DRAW.random(5) + 0.1, strict=True)} for _ in range(N)
]
# the first 300 records are chunks of 3 documents, the others of 10
DOCUMENTS = [f"d{i % 3}" if i < 300 else f"e{i % 10}" for i in range(N)]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_gte(tmp_path_factory.mktemp("gte"), seed=11), dtype="float32") as embedder:
        yield embedder


@pytest.fixture(scope="module", params=["memory", "embedded"])
def index(
    request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HybridIndex]:
    config = StoreConfig.for_embedder(embedder, fields={"tenant": "keyword"})
    folder: Path = tmp_path_factory.mktemp("stores") / "index"
    store: HybridStore = MemoryStore(config) if request.param == "memory" else EmbeddedStore(folder, config)
    store.upsert(
        RecordBatch(
            [f"r{i:03}" for i in range(N)],
            ["text"] * N,
            DENSE,
            SparseBatch.from_dicts(SPARSE),
            [{"tenant": "ab"[i % 2], "year": i % 7} if i % 5 else {} for i in range(N)],
            [{"document": document} for document in DOCUMENTS],
        )
    )
    with HybridIndex(embedder, store) as index:
        yield index


def by_document(order: list[int], k: int, size: int) -> list[str]:
    groups: dict[str, list[int]] = {}
    for i in order:
        groups.setdefault(DOCUMENTS[i], []).append(i)
    return [f"r{i:03}" for members in list(groups.values())[:k] for i in members[:size]]


@pytest.mark.parametrize(("k", "size"), [(1, 1), (5, 1), (5, 3), (13, 2), (20, 1)])
def test_k_counts_documents(index: HybridIndex, k: int, size: int) -> None:
    query = np.zeros((1, 64), np.float32)
    query[0, :2] = 1, 0.3
    scores = DENSE @ (query[0] / np.linalg.norm(query[0]))
    order = sorted(range(N), key=lambda i: (-scores[i], i))
    [found] = index.search_vectors(query, k=k, mode="dense", group_by="document", group_size=size)
    assert [result.record.id for result in found] == by_document(order, k, size)
    assert len({DOCUMENTS[i] for i in order[:100]}) < 5  # more candidates than at first had to be asked for


def test_groups_of_a_field_and_records_without_it(index: HybridIndex) -> None:
    [found] = index.search_vectors(DENSE[:1], k=8, mode="dense", group_by="year")
    years = [result.record.metadata.get("year", result.record.id) for result in found]
    assert len(set(years)) == len(years) == 8


def test_gates_drop_what_scores_too_low(index: HybridIndex) -> None:
    dense, sparse = DENSE[350:351], SparseBatch.from_dicts([SPARSE[350]])
    dots = DENSE @ DENSE[350]
    weights = np.array([sum(w * SPARSE[350].get(k, 0) for k, w in row.items()) for row in SPARSE])
    everything = [r.record.id for r in index.search_vectors(dense, sparse, k=N, fetch_k=N)[0]]
    for least_dense, least_sparse in [(0.2, None), (None, 0.15), (0.1, 0.05), (2.0, None)]:
        gates = {"min_dense": least_dense, "min_sparse": least_sparse}
        [found] = index.search_vectors(dense, sparse, k=N, fetch_k=N, **gates)  # type: ignore[arg-type]
        passes = {
            f"r{i:03}"
            for i in range(N)
            if (least_dense is None or dots[i] >= least_dense) and (least_sparse is None or weights[i] >= least_sparse)
        }
        assert [r.record.id for r in found] == [id for id in everything if id in passes]
    with pytest.raises(ConfigurationError, match="min_sparse"):
        index.search_vectors(dense, mode="dense", min_sparse=0.1)


@pytest.mark.parametrize(
    "options", [{"group_size": 2}, {"group_by": "document", "mmr": 0.5}, {"min_dense": float("nan")}, {"expand": -1}]
)
def test_options_that_make_no_sense(index: HybridIndex, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        index.search_vectors(DENSE[:1], mode="dense", **options)


def test_the_text_around_a_chunk(embedder: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    text = "".join(f"the capital of china {i} " for i in range(80))
    ingest(
        [{"id": "long", "text": text}, {"id": "long#x", "text": "query"}],
        embedder,
        store,
        chunk_tokens=30,
        overlap_tokens=6,
    )
    found = HybridIndex(embedder, store).search("capital 40", k=3, expand=1)
    for result in found:
        start, end = result.record.provenance["start"], result.record.provenance["end"]
        assert result.context is not None
        assert result.record.text in result.context
        if result.record.provenance["document"] == "long":
            assert result.context in text
            assert len(result.context) > end - start
    for result in HybridIndex(embedder, store).search("capital 40", k=3, expand=1000):
        assert result.context == (text if result.record.provenance["document"] == "long" else "query")


def test_a_scope_reads_and_writes_inside_only(index: HybridIndex) -> None:
    scope = index.scoped(Eq("tenant", "a"))
    inside = {r.id for page in index.store.scroll_all(filter=Eq("tenant", "a")) for r in page}
    outside = next(r.id for r in index.store.scroll_all(filter=Eq("tenant", "b")).__next__())
    assert scope.store.count() == len(inside)
    assert {r.record.id for r in scope.search_vectors(DENSE[:1], mode="dense", k=N)[0]} <= inside
    assert {r.id for page in scope.store.scroll_all() for r in page} == inside
    assert scope.store.get([outside]) == []
    scope.store.delete([outside])
    scope.store.delete(filter=Eq("tenant", "b"))
    assert index.store.get([outside]) != []
    assert scope.add(["a text"], ids=["mine"]) == ["mine"]
    assert index.store.get(["mine"])[0].metadata == {"tenant": "a"}
    with pytest.raises(InvalidRecordError, match="outside the scope"):
        scope.add(["a text"], ids=["other"], metadata=[{"tenant": "b"}])
    with pytest.raises(InvalidRecordError, match="belongs to a record outside"):
        scope.add(["a text"], ids=[outside])
    index.store.delete(["mine"])
    nested = ScopedStore(scope.store, Range("year", gte=3))
    assert nested.count() == index.store.count(And(Eq("tenant", "a"), Range("year", gte=3)))


def test_frequencies_of_a_scope_are_its_own(embedder: Embedder, tmp_path: Path) -> None:
    config = StoreConfig(fingerprint="f", dim=None, idf=True)
    for store in (MemoryStore(config), EmbeddedStore(tmp_path / "store", config)):
        rows = SparseBatch.from_dicts([{1: 1.0}, {1: 1.0, 2: 1.0}, {2: 1.0}])
        store.upsert(RecordBatch(["a", "b", "c"], ["t"] * 3, None, rows, [{"t": 1}, {"t": 2}, {"t": 2}]))
        keys = np.array([1, 2, 3], np.int32)
        assert store.document_frequencies(keys).tolist() == [2, 2, 0]
        assert ScopedStore(store, Eq("t", 2)).document_frequencies(keys).tolist() == [1, 2, 0]
        store.close()

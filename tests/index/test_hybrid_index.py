"""HybridIndex against an exhaustive evaluation with numpy: every document is scored, then ranked."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from reference.gte import build_gte
from stores import milvus, postgres
from support import dense_of, sparse_of
from twinvec import Embedder, SparseBatch
from twinvec.errors import ConfigurationError, FingerprintMismatchError
from twinvec_stores import (
    EmbeddedStore,
    Eq,
    Fusion,
    HybridIndex,
    HybridStore,
    MemoryStore,
    QdrantStore,
    Range,
    Result,
    SearchOptions,
    SparseQuery,
    StoreConfig,
)
from twinvec_stores.search.options import SearchKeywords

Scores = NDArray[np.float64]
TEXTS = [
    f"{a} {b} in {c}" for a in ("sort", "find", "delete", "Москва") for b in ("a list", "files", "北京") for c in "xyz"
]
IDS = [f"doc-{i:02}" for i in range(len(TEXTS))]
METADATA: list[dict[str, Any]] = [{"year": 2000 + i % 10, "kind": "ab"[i % 2]} for i in range(len(TEXTS))]
QUERIES = ["sort files", "Москва", "delete a list in y", "北京 in z", "nothing of this"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_gte(tmp_path_factory.mktemp("gte"), seed=11), dtype="float32") as embedder:
        yield embedder


@pytest.fixture(
    scope="module", params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)]
)
def index(
    request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HybridIndex]:
    config = StoreConfig.for_embedder(embedder, fields={"year": "integer"})
    store: HybridStore
    if request.param == "memory":
        store = MemoryStore(config)
    elif request.param == "embedded":
        store = EmbeddedStore(tmp_path_factory.mktemp("stores") / "index", config)
    elif request.param == "postgres":
        store = postgres.new_store(config)
    elif request.param == "milvus":
        store = milvus.new_store(config)
    else:
        store = QdrantStore(client=QdrantClient(":memory:"), config=config)
    with HybridIndex(embedder, store) as index:
        index.add(TEXTS, ids=IDS, metadata=METADATA)
        yield index


@pytest.fixture(scope="module")
def scores(embedder: Embedder) -> tuple[Scores, Scores]:
    """Cosines and sparse products of all queries with all documents."""
    documents, queries = embedder.embed_documents(TEXTS), embedder.embed_queries(QUERIES)
    dense = dense_of(queries).astype(np.float64) @ dense_of(documents).astype(np.float64).T
    sparse = sparse_of(queries).to_numpy(5000).astype(np.float64) @ sparse_of(documents).to_numpy(5000).T
    return dense, sparse


def order(row: Scores, ids: list[str]) -> list[str]:
    return [ids[i] for i in sorted(range(len(ids)), key=lambda i: (-round(float(row[i]), 5), ids[i]))]


def check(results: list[Result], row: Scores, k: int) -> None:
    """The k best by ``row``, whose near ties may be in any order."""
    by_id = dict(zip(IDS, row, strict=True))
    assert [result.score for result in results] == pytest.approx(sorted(row, reverse=True)[:k], abs=2e-5)
    for result in results:
        assert by_id[result.record.id] == pytest.approx(result.score, abs=2e-5)
        assert result.record.text == TEXTS[IDS.index(result.record.id)]
        assert result.record.metadata == METADATA[IDS.index(result.record.id)]
        assert result.record.dense is None


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
class TestRankings:
    def test_dense(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        for query, row in zip(index.search_many(QUERIES, k=7, mode="dense"), scores[0], strict=True):
            check(query, row, 7)

    def test_sparse_leaves_out_what_shares_no_term(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        for found, row in zip(index.search_many(QUERIES, k=7, mode="sparse"), scores[1], strict=True):
            check(found, row, min(7, int((row > 0).sum())))

    def test_weighted_is_the_reference_formula_over_all_documents(
        self, index: HybridIndex, scores: tuple[Scores, Scores]
    ) -> None:
        fusion = Fusion("weighted", 1.0, 0.3)
        for found, dense, sparse in zip(index.search_many(QUERIES, k=5, fusion=fusion), *scores, strict=True):
            check(found, dense + 0.3 * sparse, 5)

    def test_weighted_is_exact_with_few_candidates(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        options: dict[str, Any] = {"k": 2, "fetch_k": 2, "fusion": Fusion("weighted", 1.0, 0.3)}
        for found, dense, sparse in zip(index.search_many(QUERIES, **options), *scores, strict=True):
            for result in found:
                i = IDS.index(result.record.id)
                assert result.score == pytest.approx(dense[i] + 0.3 * sparse[i], abs=2e-5)

    def test_rrf(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        found = index.search_many(QUERIES, k=len(IDS), fetch_k=len(IDS), fusion="rrf")
        for results, dense, sparse in zip(found, *scores, strict=True):
            expected = dict.fromkeys(IDS, 0.0)
            for row, ids in ((dense, IDS), (sparse, [i for i, s in zip(IDS, sparse, strict=True) if s > 0])):
                values = np.array([row[IDS.index(i)] for i in ids])
                for rank, id in enumerate(order(values, ids), 1):
                    expected[id] += 1 / (60 + rank)
            # near ties may swap places, which moves a score by one rank
            assert {r.record.id: r.score for r in results} == pytest.approx(expected, abs=1 / 60 - 1 / 62)

    def test_a_filter_comes_before_the_ranking(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        for found, row in zip(
            index.search_many(QUERIES, k=9, mode="dense", filter=Eq("year", 2003)), scores[0], strict=True
        ):
            wanted = [i for i, data in enumerate(METADATA) if data["year"] == 2003]
            assert [r.score for r in found] == pytest.approx(sorted(row[wanted], reverse=True), abs=2e-5)
            assert {r.record.metadata["year"] for r in found} == {2003}

    def test_a_threshold_cuts_the_ranking(self, index: HybridIndex, scores: tuple[Scores, Scores]) -> None:
        row = scores[0][0]
        threshold = float(np.sort(row)[-4] - 1e-4)
        found = index.search(QUERIES[0], k=30, mode="dense", score_threshold=threshold)
        assert len(found) == int((row >= threshold).sum()) == 4

    def test_explanations_tell_the_true_scores_ranks_and_terms(
        self, index: HybridIndex, embedder: Embedder, scores: tuple[Scores, Scores]
    ) -> None:
        found = index.search(QUERIES[2], k=4, fetch_k=5, explain=True)
        weights = embedder.token_weights(sparse_of(embedder.embed_queries([QUERIES[2]])))[0]
        ranks = {id: rank for rank, id in enumerate(order(scores[0][2], IDS), 1)}
        for result in found:
            why, i = result.explanation, IDS.index(result.record.id)
            assert why is not None
            assert why.dense_score == pytest.approx(scores[0][2][i], abs=2e-5)
            assert why.sparse_score == pytest.approx(scores[1][2][i], abs=2e-5)
            assert why.dense_rank == (ranks[result.record.id] if ranks[result.record.id] <= 5 else None)
            assert sum(a * b for _, a, b in why.terms) == pytest.approx(scores[1][2][i], abs=2e-5)
            for term, in_query, _ in why.terms:
                assert in_query == pytest.approx(weights[term], abs=1e-5)

    def test_mmr_takes_unlike_documents(self, index: HybridIndex, embedder: Embedder) -> None:
        alone = index.search(QUERIES[0], k=3, mmr=1.0, mode="dense")
        assert [r.record.id for r in alone] == [r.record.id for r in index.search(QUERIES[0], k=3, mode="dense")]
        diverse = index.search(QUERIES[0], k=6, mmr=0.0)
        plain = index.search(QUERIES[0], k=6)

        def likeness(results: list[Result]) -> float:
            rows = dense_of(embedder.embed_documents([r.record.text for r in results]))
            return float((rows @ rows.T).sum())

        assert likeness(diverse) < likeness(plain)

    def test_async_gives_the_same(self, index: HybridIndex) -> None:
        def facts(results: list[list[Result]]) -> list[list[tuple[str, float, Any]]]:
            return [[(r.record.id, r.score, r.explanation) for r in found] for found in results]

        options: dict[str, Any] = {"k": 5, "explain": True, "fusion": Fusion("weighted", 1, 0.1), "mmr": 0.7}
        found = asyncio.run(index.asearch_many(QUERIES, **options))
        assert facts(found) == facts(index.search_many(QUERIES, **options))

    def test_many_queries_give_what_each_gives_alone(self, index: HybridIndex) -> None:
        together = index.search_many(QUERIES * 30, k=3)
        for i, query in enumerate(QUERIES):
            alone = index.search(query, k=3)
            for found in together[i :: len(QUERIES)]:
                assert [r.record.id for r in found] == [r.record.id for r in alone]

    def test_vectors_in_place_of_texts(self, index: HybridIndex, embedder: Embedder) -> None:
        batch = embedder.embed_queries(QUERIES)
        by_text = index.search_many(QUERIES, k=5)
        by_vector = index.search_vectors(batch.dense, batch.sparse, k=5)
        assert [[r.record.id for r in f] for f in by_vector] == [[r.record.id for r in f] for f in by_text]
        dense_only = index.search_vectors(batch.dense, k=5)
        assert [[r.record.id for r in f] for f in dense_only] == [
            [r.record.id for r in f] for f in index.search_many(QUERIES, k=5, mode="dense")
        ]


def test_adding_and_searching_is_one_forward_pass_per_text(embedder: Embedder) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    before = embedder.stats()["texts"]
    ids = index.add(["never seen before", "nor this"])
    asyncio.run(index.aadd(["nor that"], ids=["third"], metadata=[{"a": 1}]))
    index.search("a question nobody asked yet", explain=True, mmr=0.5)
    assert embedder.stats()["texts"] - before == 4
    assert sorted(r.id for page in index.store.scroll_all() for r in page) == sorted([*ids, "third"])


def test_no_queries_and_an_empty_store(embedder: Embedder) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    assert index.search_many([]) == []
    assert index.search("anything", mmr=0.5, explain=True) == []
    assert index.add([]) == []


def test_a_dense_only_store_is_searched_by_its_half(tmp_path: Path) -> None:
    with Embedder(build_gte(tmp_path, seed=12), sparse=None, dtype="float32") as embedder:
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        index.add(["a", "b"], ids=["a", "b"])
        assert index.search("a", explain=True)[0].record.id == "a"
        with pytest.raises(ConfigurationError, match="sparse"):
            index.search("a", mode="hybrid")


def test_another_models_store_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    with Embedder(build_gte(tmp_path, seed=13), dtype="float32") as other:
        with pytest.raises(FingerprintMismatchError) as caught:
            HybridIndex(other, store)
        assert other.spec.fingerprint in str(caught.value)
        assert embedder.spec.fingerprint in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": True},
        {"k": 5, "fetch_k": 4},
        {"mode": "both"},
        {"mmr": 1.5},
        {"fusion": "best"},
    ],
)
def test_wrong_options_are_refused(embedder: Embedder, wrong: dict[str, Any]) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    with pytest.raises(ConfigurationError):
        index.search("a", **wrong)


def test_keywords_are_the_fields_of_search_options() -> None:
    expected = {field.name: field.type for field in dataclasses.fields(SearchOptions)}
    assert {name: hint.__forward_arg__ for name, hint in SearchKeywords.__annotations__.items()} == expected


def test_unknown_options_and_a_string_of_queries_are_refused(embedder: Embedder) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    with pytest.raises(TypeError, match="top_k"):
        index.search("a", top_k=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="list"):
        index.search_many("a")


def test_idf_comes_from_the_store_and_stays_right_under_upsert_and_delete(tmp_path: Path) -> None:
    config = StoreConfig(fingerprint="f", sparse=True, idf=True)
    from twinvec_stores import RecordBatch

    rows = [{1: 1.0, 2: 1.0}, {1: 2.0}, {1: 1.0, 3: 1.0}, {3: 0.5}]
    with EmbeddedStore(tmp_path / "s", config) as store:
        store.upsert(RecordBatch(list("abcd"), list("abcd"), sparse=SparseBatch.from_dicts(rows)))
        keys = np.array([1, 2, 3, 9], dtype=np.int32)
        assert store.document_frequencies(keys).tolist() == [3, 1, 2, 0]
        store.delete(["b"])
        assert store.document_frequencies(keys).tolist() == [2, 1, 2, 0]
        store.upsert(RecordBatch(["a"], ["a"], sparse=SparseBatch.from_dicts([{9: 1.0}])))
        assert store.document_frequencies(keys).tolist() == [1, 0, 2, 1]
        assert store.count() == 3
        found = store.search([SparseQuery(SparseBatch.from_dicts([{3: 1.0}])[0])], limit=5)[0]
        assert [hit.id for hit in found] == ["c", "d"]


def test_filters_of_the_store_reach_every_mode(index: HybridIndex) -> None:
    for mode in ("dense", "sparse", "hybrid"):
        found = index.search("sort a list", k=36, mode=mode, filter=Range("year", gte=2005), fusion="rrf")
        assert found
        assert all(r.record.metadata["year"] >= 2005 for r in found)

"""TwinVecVectorStore's query modes: what they find, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode as Mode

from llama_index_.counting import Counter
from llama_index_.samples import QUERY, TEXTS, ask, by, nodes
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from reference.sentence_layouts import build_bge_m3
from support import dense_of, sparse_of
from twinvec import Embedder, Task
from twinvec.errors import (
    ConfigurationError,
    InvalidRecordError,
)
from twinvec.vectors import Float32
from twinvec_stores import Fusion


@pytest.fixture
def filled(store: TwinVecVectorStore) -> TwinVecVectorStore:
    store.add(nodes())
    return store


# --- query modes


def scores(embedder: Embedder) -> tuple[dict[str, float], dict[str, float]]:
    """Return the dense and the sparse score of each node."""
    query, documents = embedder.embed_queries([QUERY]), embedder.embed_documents(TEXTS)
    dense = dense_of(documents) @ dense_of(query)[0]
    sparse = sparse_of(query).similarity(sparse_of(documents))[0]
    ids = [f"n{i:02}" for i in range(40)]
    return dict(zip(ids, dense.tolist(), strict=True)), {i: s for i, s in zip(ids, sparse.tolist(), strict=True) if s}


def best(ranking: dict[str, float], k: int = 5) -> list[str]:
    return sorted(ranking, key=lambda id: (-ranking[id], id))[:k]


def relative(ranking: dict[str, float], k: int | None = None) -> dict[str, float]:
    kept = {id: ranking[id] for id in best(ranking, k or len(ranking))}
    low, high = min(kept.values()), max(kept.values())
    return {id: (score - low) / (high - low) for id, score in kept.items()}


def test_default_and_sparse_are_the_two_rankings(filled: TwinVecVectorStore, gte: Embedder) -> None:
    dense, sparse = scores(gte)
    result = ask(filled)
    assert result.ids == best(dense)
    assert result.similarities == pytest.approx([dense[id] for id in best(dense)], abs=1e-5)
    result = ask(filled, Mode.SPARSE)
    assert result.ids == best(sparse)
    assert result.similarities == pytest.approx([sparse[id] for id in best(sparse)], abs=1e-4)
    assert ask(filled, Mode.SPARSE, sparse_top_k=3).ids == best(sparse, 3)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 0.5, 0.9, 1.0])
def test_alpha_weighs_the_dense_ranking_against_the_sparse_one(
    filled: TwinVecVectorStore, gte: Embedder, alpha: float | None
) -> None:
    result = ask(filled, Mode.HYBRID, alpha=alpha)
    if alpha in (0.0, 1.0):
        assert result == ask(filled, Mode.DEFAULT if alpha else Mode.SPARSE)
        return
    dense, sparse = (relative(ranking) for ranking in scores(gte))
    weight = 0.65 if alpha is None else alpha  # the default of every class
    fused = {id: weight * dense[id] + (1 - weight) * sparse.get(id, 0) for id in dense}
    assert result.ids == best(fused)
    assert result.similarities == pytest.approx([fused[id] for id in best(fused)], abs=1e-4)


def test_alpha_keeps_the_stores_method(gte: Embedder) -> None:
    with TwinVecVectorStore(TwinVecEmbedding(embedder=gte), fusion="rrf") as store:
        store.add(nodes())
        dense, sparse = (best(ranking, 40) for ranking in scores(gte))
        fused = {id: 0.2 / (61 + dense.index(id)) for id in dense}
        for rank, id in enumerate(sparse, 61):
            fused[id] += 0.8 / rank
        assert ask(store, Mode.HYBRID, alpha=0.2).ids == best(fused)
        assert store.fusion == Fusion("rrf")


def test_how_many_are_returned_and_how_many_take_part(filled: TwinVecVectorStore, gte: Embedder) -> None:
    dense, sparse = scores(gte)
    assert len(ask(filled, Mode.HYBRID, similarity_top_k=7).ids or []) == 7
    assert ask(filled, Mode.HYBRID, hybrid_top_k=3, similarity_top_k=40).ids == ask(filled, Mode.HYBRID).ids[:3]  # type: ignore[index]
    # two dense and three sparse candidates
    result = ask(filled, Mode.HYBRID, hybrid_top_k=10, similarity_top_k=2, sparse_top_k=3)
    two, three = relative(dense, 2), relative(sparse, 3)
    fused = {id: 0.65 * two.get(id, 0) + 0.35 * three.get(id, 0) for id in {*two, *three}}
    assert result.ids == best(fused, 10)
    assert result.similarities == pytest.approx([fused[id] for id in best(fused, 10)], abs=1e-4)


def by_marginal_relevance(query: Float32, rows: Float32, weight: float, k: int) -> list[int]:
    relevance, likeness = rows @ query, rows @ rows.T
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < k:
        gain = weight * relevance - (1 - weight) * likeness[:, chosen].max(axis=1)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    return chosen


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_mmr_weighs_relevance_against_likeness(filled: TwinVecVectorStore, gte: Embedder, threshold: float) -> None:
    query, rows = dense_of(gte.embed_queries([QUERY]))[0], dense_of(gte.embed_documents(TEXTS))
    expected = [f"n{i:02}" for i in by_marginal_relevance(query, rows, threshold, 6)]
    assert ask(filled, Mode.MMR, similarity_top_k=6, more={"mmr_threshold": threshold}).ids == expected
    assert ask(filled, Mode.MMR, similarity_top_k=6, mmr_threshold=threshold).ids == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_mmr_thresholds_mean_what_llamaindexs_own_store_means(
    filled: TwinVecVectorStore, embedding: TwinVecEmbedding, threshold: float
) -> None:
    """For two results: from the third on, that store compares with the last chosen one only."""
    simple, given = SimpleVectorStore(), nodes()
    simple.add(list(embedding(given)))
    vector = embedding.get_query_embedding(QUERY)
    query = VectorStoreQuery(query_embedding=vector, similarity_top_k=2, mode=Mode.MMR)
    expected = simple.query(query, mmr_threshold=threshold).ids
    assert ask(filled, Mode.MMR, similarity_top_k=2, mmr_threshold=threshold).ids == expected


def test_mmr_without_a_threshold_is_llamaindexs_default(filled: TwinVecVectorStore) -> None:
    assert ask(filled, Mode.MMR).ids == ask(filled, Mode.MMR, more={"mmr_threshold": 0.5}).ids != ask(filled).ids


def test_a_hybrid_query_is_one_forward_pass(own: TwinVecEmbedding) -> None:
    with TwinVecVectorStore(own) as store:
        store.add(nodes())
        counter = Counter(own.embedder)
        ask(store, Mode.HYBRID)
        assert counter.texts == 1
        store.query(VectorStoreQuery(query_str="without a vector", mode=Mode.HYBRID))
        store.query(VectorStoreQuery(query_str="without a vector and without words", mode=Mode.DEFAULT))
        assert counter.texts == 3


def test_the_sparse_half_has_the_task_of_the_dense_one(tmp_path: Path) -> None:
    """With another prompt the memo could not answer, and the sparse row would be another one."""
    prompts, task = {"query": "Instruct: a task\nQuery: "}, Task("another task")
    embedding = TwinVecEmbedding(model_name=str(build_bge_m3(tmp_path)), dtype="float32", prompts=prompts, task=task)
    with TwinVecVectorStore(embedding) as store:
        store.add(nodes(4))
        counter = Counter(embedding.embedder)
        found = ask(store, Mode.HYBRID)
        assert counter.texts == 1
        assert found.ids == [r.record.id for r in store.index.search(QUERY, task=task, k=5, fusion=store.fusion)]


def test_restrictions_join(filled: TwinVecVectorStore) -> None:
    result = ask(filled, doc_ids=["doc1", "doc2"], node_ids=["n05", "n15", "n16", "n25"], filters=by("n", 15, ">"))
    assert sorted(result.ids or []) == ["n16", "n25"]
    assert len(ask(filled, node_ids=[]).ids or []) == 5  # as VectorStoreIndex sends it, for any
    assert not ask(filled, doc_ids=[]).ids
    assert sorted(ask(filled, Mode.SPARSE, doc_ids=["doc1"]).ids or [""])[0] >= "n10"


# --- what is refused


@pytest.mark.parametrize("mode", [Mode.TEXT_SEARCH, Mode.SEMANTIC_HYBRID, Mode.SVM, Mode.LINEAR_REGRESSION])
def test_modes_that_it_does_not_have_are_refused(filled: TwinVecVectorStore, mode: Mode) -> None:
    with pytest.raises(ConfigurationError, match="DEFAULT, SPARSE, HYBRID or MMR"):
        ask(filled, mode)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (Mode.HYBRID, {"alpha": 1.5}, "alpha=1.5 must be a number from 0"),
        (Mode.HYBRID, {"query_str": None}, "mode HYBRID needs query_str"),
        (Mode.SPARSE, {"query_str": None}, "mode SPARSE needs query_str"),
        (Mode.DEFAULT, {"query_str": None, "query_embedding": None}, "mode DEFAULT needs query_str"),
        (Mode.DEFAULT, {"more": {"mmr_threshold": 0.5}}, "mmr_threshold: not supported by this store in mode DEFAULT"),
        (Mode.DEFAULT, {"more": {"qdrant_filters": 1}}, "qdrant_filters: not supported"),
        (Mode.DEFAULT, {"embedding_field": "other"}, "embedding_field: not supported"),
        (Mode.DEFAULT, {"output_fields": ["text"]}, "output_fields: not supported"),
        (Mode.MMR, {"more": {"mmr_threshold": 3}}, "mmr=3 must be"),
        (Mode.DEFAULT, {"similarity_top_k": 0}, "similarity_top_k=0 must be an integer"),
        (Mode.SPARSE, {"sparse_top_k": 0}, "sparse_top_k=0 must be an integer"),
        (Mode.HYBRID, {"hybrid_top_k": 2.5}, "hybrid_top_k=2.5 must be an integer"),
        (Mode.HYBRID, {"sparse_top_k": 0}, "sparse_top_k=0 must be an integer"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    filled: TwinVecVectorStore, mode: Mode, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ask(filled, mode, **options)


def test_a_model_without_a_sparse_half_searches_densely(giga: Embedder) -> None:
    with TwinVecVectorStore(TwinVecEmbedding(embedder=giga)) as store:
        store.add(nodes())
        assert len(ask(store).ids or []) == len(ask(store, Mode.HYBRID, alpha=1).ids or []) == 5
        for mode in (Mode.SPARSE, Mode.HYBRID):
            with pytest.raises(ConfigurationError, match="no sparse half"):
                ask(store, mode)


def test_unknown_arguments_fail(store: TwinVecVectorStore) -> None:
    for call in (
        lambda: store.add([], batch=3),
        lambda: store.delete("doc", shard=1),
        lambda: store.delete_nodes(["a"], shard=1),
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()


def test_a_query_vector_of_another_model_is_refused(filled: TwinVecVectorStore) -> None:
    with pytest.raises(InvalidRecordError, match="8"):
        ask(filled, query_embedding=[0.5] * 8)

"""tune: a planted better weighting is found and confirmed, a planted tie is called one, the choice is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
from qdrant_client import QdrantClient

from stores import milvus, postgres
from twinvec import BaseReranker, Embedder, EmbeddingBatch, SparseBatch
from twinvec.errors import ConfigurationError, StoreMismatchError
from twinvec_stores import (
    EmbeddedStore,
    Eq,
    Fusion,
    HybridIndex,
    HybridStore,
    MemoryStore,
    QdrantStore,
    RecordBatch,
    StoreConfig,
    export_store,
    open_store,
)
from twinvec_stores.evaluation import Questions, evaluate, split, tune

N, DIM = 60, 32


class Planted:
    """An embedder whose vectors of questions are known: rows of the query's number."""

    def __init__(self, real: Embedder, dense: Any, sparse: SparseBatch) -> None:
        self._real, self._dense, self._sparse = real, dense, sparse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def embed_queries(self, texts: list[str], **_: Any) -> EmbeddingBatch:
        rows = [int(text.split()[-1]) for text in texts]
        zeros = np.zeros(len(rows))
        return EmbeddingBatch(self._dense[rows], self._sparse[rows], zeros.astype(np.int32), zeros.astype(bool))


def planted(embedder: Embedder, *, dense_noise: float, sparse_right: bool) -> tuple[HybridIndex, Questions]:
    """An index in which question i asks for document i.

    The dense half knows it but for noise. The sparse half names exactly it, or exactly another one.
    """
    random = np.random.default_rng(5)
    documents = random.normal(size=(N, DIM))
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    asked = documents + dense_noise * random.normal(size=(N, DIM)) / np.sqrt(DIM)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    terms = [{i: 1.0} for i in range(N)]
    named = terms if sparse_right else terms[1:] + terms[:1]
    store = MemoryStore(StoreConfig(fingerprint="planted", dim=DIM, sparse=True))
    store.config = replace(StoreConfig.for_embedder(embedder), dim=DIM)
    store.upsert(
        RecordBatch(
            [f"d{i}" for i in range(N)],
            [f"text {i}" for i in range(N)],
            documents.astype(np.float32),
            SparseBatch.from_dicts(terms),
            provenance=[{"document": "all", "chunk": i} for i in range(N)],  # chunks, each judged by itself
        )
    )
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.embedder = Planted(embedder, asked.astype(np.float32), SparseBatch.from_dicts(named))  # type: ignore[assignment]
    index.store = store
    ids = [f"q{i}" for i in range(N)]
    questions = Questions(
        {id: f"question {i}" for i, id in enumerate(ids)},
        {id: {f"d{i}": 1} for i, id in enumerate(ids)},
        {id: {"lang": "ru" if i % 3 else "en"} for i, id in enumerate(ids)},
    )
    return index, questions


def test_a_planted_better_weighting_is_found_and_confirmed(embedder: Embedder) -> None:
    index, questions = planted(embedder, dense_noise=30.0, sparse_right=True)
    found = tune(index, questions, measure="RR@10")
    assert set(found.chosen) == {"fusion"}
    assert any("min_dense" in trial.options for trial in found.trials)
    assert found.better
    assert found.means[1] == 1 > found.means[0] + 0.05  # the sparse half knows every answer
    assert found.trials[0].mean >= found.default_mean
    assert found.parts == (30, 30)
    assert found.to_dict()["better"] is True


def test_a_planted_tie_is_called_one(embedder: Embedder) -> None:
    index, questions = planted(embedder, dense_noise=0.0, sparse_right=True)
    found = tune(index, questions)
    assert found.means == (1.0, 1.0)
    assert not found.better
    assert found.chosen == {}  # of equals the first: as it is


def test_the_held_back_questions_do_not_choose(embedder: Embedder) -> None:
    """The sparse half is right for the questions that choose, and wrong for all that judge."""
    index, questions = planted(embedder, dense_noise=30.0, sparse_right=True)
    _, held_back = split(questions)
    wrong = {id: {f"d{(int(id[1:]) + 1) % N}": 1} if id in held_back else row for id, row in questions.grades.items()}
    found = tune(index, Questions(questions.texts, wrong, questions.fields), measure="RR@10")
    assert found.trials[0].mean > found.default_mean
    assert not found.better


def knowing() -> Any:
    """A reranker that knows every answer that it is given."""

    def score(pairs: list[tuple[str, str]]) -> Any:
        return np.array([query.split()[-1] == text.split()[-1] for query, text in pairs], np.float32)

    reranker = create_autospec(BaseReranker, instance=True)
    reranker.score.side_effect = score
    return reranker


def test_a_planted_depth_of_reranking_is_found_and_followed(embedder: Embedder) -> None:
    index, questions = planted(embedder, dense_noise=0, sparse_right=False)
    index.embedder._dense *= -1  # type: ignore[attr-defined]  # the answer comes last, behind the 50 that are read
    found = tune(index, questions, measure="RR@10", rerank=knowing())
    assert found.means == (0.0, 1.0)
    assert found.better
    assert found.chosen["rerank_k"] == 100
    assert {trial.options.get("rerank_k") for trial in found.trials} == {None, 10, 20, 50, 100, 200}
    index.set_search(**found.chosen)
    asked = index.embedder.embed_queries(["question 3"])
    search = partial(index.search_vectors, asked.dense, asked.sparse, ["question 3"], rerank=knowing())
    assert search(k=1)[0][0].record.id == "d3"
    assert search(k=1, rerank_k=50)[0][0].record.id != "d3"  # what is said goes before what is kept
    assert len(search(k=60, fetch_k=100)[0]) == 60
    assert tune(index, questions, measure="RR@10", rerank=knowing()).means == (1.0, 1.0)


def test_reranked_searches_are_measured(embedder: Embedder) -> None:
    index, questions = planted(embedder, dense_noise=30.0, sparse_right=False)
    found = evaluate(index, questions, measures=["RR@10", "R@60"], rerank=knowing())
    assert found.ways["reranked"].mean("RR@10") == 1 > found.ways["hybrid"].mean("RR@10")


def test_the_split_is_stratified_and_seeded(embedder: Embedder) -> None:
    _, questions = planted(embedder, dense_noise=0, sparse_right=True)
    halves = split(questions, by="lang")
    for half in halves:
        assert len(half) == N // 2
        assert sum(questions.fields[id]["lang"] == "en" for id in half) == 10
    assert set(halves[0]) | set(halves[1]) == set(questions.texts)
    assert split(questions, by="lang") == halves
    assert split(questions, by="lang", seed=1) != halves
    with pytest.raises(ConfigurationError, match="no question has the field 'source'"):
        split(questions, by="source")
    with pytest.raises(ConfigurationError, match="too few"):
        split(questions.part(questions.asked[:30]))


def test_a_store_of_one_half_has_nothing_to_tune(embedder: Embedder) -> None:
    index, questions = planted(embedder, dense_noise=0, sparse_right=True)
    index.store.config = replace(index.store.config, sparse=False)
    with pytest.raises(ConfigurationError, match="nothing to tune"):
        tune(index, questions)


CHOICE: dict[str, Any] = {"fusion": Fusion("rrf", 0.2, 0.8), "fetch_k": 50}
TEXTS = [f"text number {i} about {subject}" for i, subject in enumerate(["lists", "files", "sockets", "dates"] * 5)]


@pytest.fixture(params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[HybridStore]:
    config = StoreConfig.for_embedder(embedder)
    if request.param == "memory":
        yield MemoryStore(config)
    elif request.param == "embedded":
        with EmbeddedStore(tmp_path / "index", config) as store:
            yield store
    elif request.param == "postgres":
        with postgres.new_store(config) as store:
            yield store
    elif request.param == "milvus":
        with milvus.new_store(config) as store:
            yield store
    else:
        with QdrantStore(client=QdrantClient(":memory:"), config=config) as store:
            yield store


def test_a_choice_is_kept_and_followed(embedder: Embedder, store: HybridStore) -> None:
    index = HybridIndex(embedder, store)
    index.add(TEXTS, ids=[f"d{i}" for i in range(20)])
    before, chosen = index.search("sockets"), index.search("sockets", **CHOICE)
    index.set_search(**CHOICE)
    scores = [(result.record.id, result.score) for result in index.search("sockets")]
    assert scores == [(result.record.id, result.score) for result in chosen]
    assert scores != [(result.record.id, result.score) for result in before]
    assert store.info().config.search == {
        "fusion": {"method": "rrf", "dense_weight": 0.2, "sparse_weight": 0.8, "rrf_k": 60},
        "fetch_k": 50,
    }
    again = index.search("sockets", fusion="relative", fetch_k=100)  # what is said goes before what is kept
    assert [result.score for result in again] == [result.score for result in before]
    assert len(index.search("sockets", k=60)) == 20  # more than the kept fetch_k
    index.set_search()
    assert [result.score for result in index.search("sockets")] == [result.score for result in before]


def test_a_choice_outlives_the_process(embedder: Embedder, tmp_path: Path) -> None:
    with HybridIndex(embedder, EmbeddedStore(tmp_path / "a", StoreConfig.for_embedder(embedder))) as index:
        index.add(TEXTS)
        index.set_search(**CHOICE, min_dense=0.1)
        export_store(index.store, tmp_path / "a.jsonl")
    with open_store(tmp_path / "a") as store:
        assert store.config.search["min_dense"] == 0.1
        index = HybridIndex(embedder, store)
        assert index.search("sockets", mode="sparse")  # the gate is the dense half's
        assert index.search_vectors(sparse=embedder.embed_queries(["sockets"], dense=False).sparse)


def test_both_frameworks_follow(embedder: Embedder) -> None:
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    from langchain_twinvec import TwinVecEmbeddings
    from langchain_twinvec import TwinVecVectorStore as LangChainStore
    from llama_index_twinvec import TwinVecEmbedding
    from llama_index_twinvec import TwinVecVectorStore as LlamaIndexStore

    store = MemoryStore(StoreConfig.for_embedder(embedder))
    index = HybridIndex(embedder, store)
    index.add(TEXTS, ids=[f"d{i}" for i in range(20)])
    index.set_search(**CHOICE)
    expected = [(result.record.id, result.score) for result in index.search("sockets", k=4)]
    chain = LangChainStore(TwinVecEmbeddings(embedder=embedder), store=store)
    assert [(d.id, s) for d, s in chain.similarity_search_with_score("sockets", k=4)] == expected
    llama = LlamaIndexStore(embedding=TwinVecEmbedding(embedder=embedder), store=store)
    answer = llama.query(VectorStoreQuery(query_str="sockets", similarity_top_k=4, mode=VectorStoreQueryMode.HYBRID))
    assert list(zip(answer.ids or [], answer.similarities or [], strict=True)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 3}, "not k"), ({"fusion": "best"}, "fusion 'best' is not one of"), ({"fetch_k": 0}, "fetch_k=0")],
)
def test_wrong_choices_are_not_kept(embedder: Embedder, options: Any, message: str) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    with pytest.raises(ConfigurationError, match=message):
        index.set_search(**options)
    with pytest.raises(ConfigurationError, match="only the store's owner"):
        index.scoped(Eq("tenant", "a")).set_search(fetch_k=50)


def test_a_damaged_choice_is_named(embedder: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    store.config = replace(store.config, search={"fusion": {"way": "rrf"}})
    with pytest.raises(StoreMismatchError, match="search options are damaged"):
        HybridIndex(embedder, store).search("x")

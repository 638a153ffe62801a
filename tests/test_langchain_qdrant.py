"""Hybrid ingestion and search through langchain-qdrant: dense, then sparse, is one forward pass per text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import models

from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from reference.gte import build_gte
from support import dense_of


@pytest.fixture
def embeddings(tmp_path: Path) -> Iterator[TwinVecEmbeddings]:
    made = TwinVecEmbeddings(model=str(build_gte(tmp_path, seed=21)), dtype="float32")
    yield made
    made.embedder.close()


def test_hybrid_ingestion_and_search_cost_one_pass_per_text(embeddings: TwinVecEmbeddings) -> None:
    texts = [f"document number {i} about {'sorting lists' if i % 2 else 'the capital of Russia'}" for i in range(150)]
    stats = embeddings.embedder.stats
    store = QdrantVectorStore.from_texts(
        texts,
        embeddings,
        sparse_embedding=embeddings.sparse(),
        location=":memory:",
        retrieval_mode=RetrievalMode.HYBRID,
    )
    # the store also embeds one "dummy_text" to learn the dimension
    assert stats()["texts"] in (len(texts), len(texts) + 1)
    before = stats()["texts"], stats()["forwards"]
    found = store.similarity_search("sorting lists number 7", k=5)
    assert len(found) == 5
    assert (stats()["texts"] - before[0], stats()["forwards"] - before[1]) == (1, 1)
    assert len(asyncio.run(store.asimilarity_search("the capital", k=3))) == 3


def test_the_store_finds_what_an_exact_search_finds(embeddings: TwinVecEmbeddings) -> None:
    texts = [f"text {i} {'a b c d e f g h'[: i % 15]}" for i in range(40)]
    store = QdrantVectorStore.from_texts(texts, embeddings, location=":memory:")
    query = "text 7 a b"
    documents, queries = embeddings.embedder.embed_documents(texts), embeddings.embedder.embed_queries([query])
    scores = dense_of(documents) @ dense_of(queries)[0]
    expected = [texts[i] for i in np.argsort(-scores)[:3]]
    assert [document.page_content for document in store.similarity_search(query, k=3)] == expected


def test_sparse_search_finds_what_ours_finds(embeddings: TwinVecEmbeddings) -> None:
    texts = [f"text {i} {'a b c d e f g h'[: i % 15]}" for i in range(40)]
    theirs = QdrantVectorStore.from_texts(
        texts, sparse_embedding=embeddings.sparse(), location=":memory:", retrieval_mode=RetrievalMode.SPARSE
    )
    found = theirs.similarity_search_with_score("text 7 a b", k=40)
    ours = TwinVecVectorStore.from_texts(texts, embeddings)
    expected = {d.page_content: s for d, s in ours.similarity_search_with_score("text 7 a b", k=40, mode="sparse")}
    assert {document.page_content for document, _ in found} == set(expected)
    for document, score in found:
        assert score == pytest.approx(expected[document.page_content], rel=1e-4)


def test_bm25_works_where_the_collection_applies_the_idf(tmp_path: Path) -> None:
    embeddings = TwinVecEmbeddings(model=str(build_gte(tmp_path, seed=21)), dtype="float32", sparse="bm25")
    texts = ["sorting a list", "sorting a table", "sorting a file", "the capital of Russia"]
    store = QdrantVectorStore.from_texts(
        texts,
        sparse_embedding=embeddings.sparse(),
        location=":memory:",
        retrieval_mode=RetrievalMode.SPARSE,
        sparse_vector_params={"modifier": models.Modifier.IDF},
    )
    ours = TwinVecVectorStore.from_texts(texts, embeddings, mode="sparse")
    ((document, score),) = store.similarity_search_with_score("sort files", k=1)
    ((expected, expected_score),) = ours.similarity_search_with_score("sort files", k=1)
    assert document.page_content == expected.page_content == "sorting a file"
    assert score == pytest.approx(expected_score, rel=1e-5)
    embeddings.embedder.close()

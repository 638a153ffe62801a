"""Hybrid ingestion and search through langchain-qdrant: dense, then sparse, is one forward pass per text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector

from reference.gte import build_gte
from support import dense_of, sparse_of
from twinvec import Embedder


class Dense(Embeddings):
    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = dense_of(self.embedder.embed_documents(texts, sparse=False)).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        row: list[float] = dense_of(self.embedder.embed_queries([text], sparse=False))[0].tolist()
        return row


class Sparse(SparseEmbeddings):
    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        rows = sparse_of(self.embedder.embed_documents(texts, dense=False))
        return [SparseVector(indices=row.indices.tolist(), values=row.values.tolist()) for row in rows]

    def embed_query(self, text: str) -> SparseVector:
        row = sparse_of(self.embedder.embed_queries([text], dense=False))[0]
        return SparseVector(indices=row.indices.tolist(), values=row.values.tolist())


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[Embedder]:
    with Embedder(build_gte(tmp_path, seed=21), dtype="float32") as made:
        yield made


def test_hybrid_ingestion_and_search_cost_one_pass_per_text(embedder: Embedder) -> None:
    texts = [f"document number {i} about {'sorting lists' if i % 2 else 'the capital of Russia'}" for i in range(150)]
    store = QdrantVectorStore.from_texts(
        texts,
        Dense(embedder),
        sparse_embedding=Sparse(embedder),
        location=":memory:",
        retrieval_mode=RetrievalMode.HYBRID,
    )
    # the store also embeds one "dummy_text" to learn the dimension
    assert embedder.stats()["texts"] in (len(texts), len(texts) + 1)
    before = embedder.stats()["texts"], embedder.stats()["forwards"]
    found = store.similarity_search("sorting lists number 7", k=5)
    assert len(found) == 5
    assert (embedder.stats()["texts"] - before[0], embedder.stats()["forwards"] - before[1]) == (1, 1)


def test_the_store_finds_what_an_exact_search_finds(embedder: Embedder) -> None:
    texts = [f"text {i} {'a b c d e f g h'[: i % 15]}" for i in range(40)]
    store = QdrantVectorStore.from_texts(texts, Dense(embedder), location=":memory:")
    query = "text 7 a b"
    scores = dense_of(embedder.embed_documents(texts)) @ dense_of(embedder.embed_queries([query]))[0]
    expected = [texts[i] for i in np.argsort(-scores)[:3]]
    assert [document.page_content for document in store.similarity_search(query, k=3)] == expected

"""Any Embeddings give the dense half of a store; the sparse one is ours."""

from __future__ import annotations

import asyncio
import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from twinvec.errors import ConfigurationError, FingerprintMismatchError, StoreMismatchError
from twinvec.joined import JoinedEmbedder
from twinvec_stores import load_embedder

TEXTS = ["sort a list", "open a file", "the capital of France", "sort the files"]
QUERY = "sort a file"


class ApiEmbeddings(Embeddings):
    """What an API's class looks like: vectors of any length, a model's name."""

    def __init__(self, model: str = "Embeddings", size: int = 12) -> None:
        self.model, self.size = model, size
        self.calls: list[int] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        return [self._row(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._row(text)

    def _row(self, text: str) -> list[float]:
        numbers = np.random.default_rng(list(text.encode())).normal(size=self.size)
        return [float(number) for number in 3 * numbers]


@pytest.mark.parametrize("sparse", ["bm25", "model"])
def test_each_half_ranks_as_its_source_says(gte: TwinVecEmbeddings, sparse: str) -> None:
    api = ApiEmbeddings()
    half = "bm25" if sparse == "bm25" else gte.sparse()
    store = TwinVecVectorStore.from_texts(TEXTS, api, ids=TEXTS, sparse=half)
    assert api.calls == [4]
    rows, query = np.array(api.embed_documents(TEXTS)), np.array(api.embed_query(QUERY))
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    found = {d.id: s for d, s in store.similarity_search_with_score(QUERY, mode="dense")}
    np.testing.assert_allclose([found[text] for text in TEXTS], cosines, atol=1e-6)
    lexical = store.similarity_search_with_score(QUERY, mode="sparse")
    if sparse == "bm25":
        assert {d.page_content for d, _ in lexical} == {"sort a list", "open a file", "sort the files"}
    else:
        own = TwinVecVectorStore.from_texts(TEXTS, gte, ids=TEXTS).similarity_search_with_score(QUERY, mode="sparse")
        assert [d.id for d, _ in lexical] == [d.id for d, _ in own]
        np.testing.assert_allclose([s for _, s in lexical], [s for _, s in own], rtol=1e-5)
    expected = store.similarity_search_with_score(QUERY)
    assert asyncio.run(store.asimilarity_search_with_score(QUERY)) == expected
    assert store.as_retriever().batch([QUERY, QUERY]) == [[d for d, _ in expected]] * 2
    why = store.similarity_search(QUERY, k=1, explain=True)[0].metadata["_twinvec"]
    assert why["terms"]


def test_a_dense_store_needs_nothing_of_ours(tmp_path: Path) -> None:
    fake = DeterministicFakeEmbedding(size=6)
    with TwinVecVectorStore.from_texts(TEXTS, fake, path=tmp_path / "index") as store:
        assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]
        with pytest.raises(ConfigurationError, match="only dense vectors"):
            store.similarity_search("a", fusion="rrf")
        with pytest.raises(StoreMismatchError, match="does not record how to load its model"):
            load_embedder(store.index.store)
        made = pickle.loads(pickle.dumps(store))
        assert made.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]


def test_the_fingerprint_names_class_model_and_dimension(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    TwinVecVectorStore.from_texts(TEXTS, ApiEmbeddings(), path=tmp_path / "index", sparse="bm25").close()
    TwinVecVectorStore(ApiEmbeddings(), path=tmp_path / "index", sparse="bm25").close()
    others: list[tuple[Embeddings, object]] = [
        (ApiEmbeddings("EmbeddingsGigaR"), "bm25"),
        (ApiEmbeddings(size=13), "bm25"),
        (ApiEmbeddings(), "bm25:german"),
        (ApiEmbeddings(), gte.sparse()),
        (DeterministicFakeEmbedding(size=12), "bm25"),
    ]
    for other, sparse in others:
        with pytest.raises(FingerprintMismatchError):
            TwinVecVectorStore(other, path=tmp_path / "index", sparse=sparse)  # type: ignore[arg-type]


def test_a_dimension_that_changes_is_refused() -> None:
    api = ApiEmbeddings()
    store = TwinVecVectorStore.from_texts(TEXTS, api)
    api.size = 13
    with pytest.raises(ConfigurationError, match=r"of \[13\] dimensions for 1 texts; 1 of 12"):
        store.similarity_search("a")
    with pytest.raises(ConfigurationError, match=r"of \[13\] dimensions"):
        store.add_texts(["new"])
    assert store.index.store.count() == len(TEXTS)


def test_what_cannot_be_is_said(gte: TwinVecEmbeddings) -> None:
    with pytest.raises(ConfigurationError, match="must be LangChain Embeddings, not str"):
        TwinVecVectorStore("a name")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="determined by the TwinVecEmbeddings"):
        TwinVecVectorStore(gte, sparse="bm25")
    with pytest.raises(ConfigurationError, match="sparse='splade' is neither"):
        TwinVecVectorStore(ApiEmbeddings(), sparse="splade")
    with pytest.raises(ConfigurationError, match="not int"):
        TwinVecVectorStore(ApiEmbeddings(), sparse=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not trained with instructions"):
        TwinVecVectorStore.from_texts(TEXTS, ApiEmbeddings()).similarity_search("a", task="Find")


@pytest.mark.parametrize("name", ["embed_documents", "embed_query", "aembed_documents", "aembed_query"])
def test_a_subclass_of_the_sparse_class_is_refused_not_passed_over(gte: TwinVecEmbeddings, name: str) -> None:
    kind = type(gte.sparse())
    changed = type("Changed", (kind,), {name: functools.partialmethod(getattr(kind, name)), "__module__": "mine"})
    with pytest.raises(ConfigurationError, match="Changed overrides how texts are embedded"):
        TwinVecVectorStore(ApiEmbeddings(), sparse=changed(embedder=gte.embedder))
    plain = type("Plain", (kind,), {"more": 1, "__module__": "mine", "__annotations__": {"more": int}})
    assert TwinVecVectorStore(ApiEmbeddings(), sparse=plain(embedder=gte.embedder)).index.store.config.sparse


def test_a_subclass_of_ours_keeps_its_sparse_half_and_its_task(giga: TwinVecEmbeddings) -> None:
    class Upper(TwinVecEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            return super().embed_query(text.upper())

    made = Upper(embedder=giga.embedder)
    store = TwinVecVectorStore.from_texts(TEXTS, made)
    assert isinstance(store.index.embedder, JoinedEmbedder)
    assert store.index.embedder.needs_idf
    task = "Given a question, find a paragraph with the answer"
    plain = TwinVecVectorStore.from_texts(TEXTS, giga)
    for given in (None, task):
        found = store.similarity_search_with_score("sort", mode="dense", task=given)
        expected = plain.similarity_search_with_score("SORT", mode="dense", task=given)
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)
    before = giga.embedder.stats()["texts"]
    store.add_texts([f"one pass {i}" for i in range(5)])
    assert giga.embedder.stats()["texts"] - before == 5

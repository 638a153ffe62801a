"""Any of LlamaIndex's embeddings beside our sparse half, and vectors that are another model's."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores.types import VectorStoreQueryMode

import llama_index_twinvec.nodes
from langchain_twinvec import TwinVecVectorStore as LangChainStore
from llama_index_.counting import Counter
from llama_index_.samples import QUERY, nodes
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecSparseEmbedding, TwinVecVectorStore
from twinvec import Embedder
from twinvec.errors import ConfigurationError, FingerprintMismatchError, InvalidRecordError
from twinvec_stores import Fusion, MemoryStore, StoreConfig


class Letters(BaseEmbedding):
    """Stands in for an embedding behind somebody's API: how often each of some letters is in a text."""

    letters: str = "aeioust"

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0 + text.count(letter) for letter in self.letters]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def documents() -> list[Document]:
    return [Document(text=node.get_content(), id_=node.node_id) for node in nodes(12)]


@pytest.mark.parametrize("kind", ["bm25", "head"])
@pytest.mark.parametrize("use_async", [False, True])
def test_a_foreign_dense_half_beside_ours(gte: Embedder, kind: str, use_async: bool) -> None:
    sparse: Any = "bm25" if kind == "bm25" else TwinVecSparseEmbedding(embedder=gte)
    embedding = Letters()
    with TwinVecVectorStore(embedding, sparse=sparse) as store:
        VectorStoreIndex.from_documents(
            documents(), StorageContext.from_defaults(vector_store=store), embed_model=embedding, use_async=use_async
        )
        found = HybridRetriever(store, similarity_top_k=12).retrieve(QUERY)
        dense = {n.node_id: n.score for n in HybridRetriever(store, mode="dense", similarity_top_k=12).retrieve(QUERY)}
        words = HybridRetriever(store, mode="sparse", similarity_top_k=12).retrieve(QUERY)
        row = embedding.get_query_embedding(QUERY)
        size = sum(value * value for value in row) ** 0.5
        for node in store.get_nodes():
            own = node.get_embedding()
            cosine = sum(a * b for a, b in zip(own, row, strict=True)) / size / sum(a * a for a in own) ** 0.5
            assert dense[node.node_id] == pytest.approx(cosine, abs=1e-5)
        assert {n.node_id for n in words} < {n.node_id for n in found} == set(dense)
        assert {term for n in words for term, *_ in n.metadata["_twinvec"]["terms"]}


def test_a_store_knows_the_class_and_the_model_of_a_foreign_half(tmp_path: Path) -> None:
    TwinVecVectorStore(Letters(), path=tmp_path / "index").close()
    TwinVecVectorStore(Letters(), path=tmp_path / "index").close()
    for other in (Letters(model_name="another"), MockEmbedding(7), Letters(letters="xy")):
        with pytest.raises(FingerprintMismatchError):
            TwinVecVectorStore(other, path=tmp_path / "index")


def test_half_a_model_is_refused_beside_our_own(gte: Embedder) -> None:
    for given in ("bm25", TwinVecSparseEmbedding(embedder=gte)):
        with pytest.raises(ConfigurationError, match="determined by the TwinVecEmbedding"):
            TwinVecVectorStore(TwinVecEmbedding(embedder=gte), sparse=given)
    with pytest.raises(ConfigurationError, match="not Embedder"):
        TwinVecVectorStore(Letters(), sparse=gte)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["_get_query_embedding", "_aget_text_embedding", "_get_text_embeddings"])
def test_a_subclass_of_the_sparse_class_is_refused_not_passed_over(gte: Embedder, name: str) -> None:
    override = functools.partialmethod(getattr(TwinVecSparseEmbedding, name))
    changed: Any = type("Changed", (TwinVecSparseEmbedding,), {name: override})
    with pytest.raises(ConfigurationError, match="Changed overrides how texts are embedded"):
        TwinVecVectorStore(Letters(), sparse=changed(embedder=gte))
    plain: Any = type("Plain", (TwinVecSparseEmbedding,), {})
    assert TwinVecVectorStore(Letters(), sparse=plain(embedder=gte)).client.config.sparse


# --- what add refuses


@pytest.mark.parametrize("through_async", [False, True])
def test_another_models_vectors_of_equal_dimension_are_noticed(
    store: TwinVecVectorStore, monkeypatch: pytest.MonkeyPatch, through_async: bool
) -> None:
    monkeypatch.setattr(llama_index_twinvec.nodes, "_AT_ONCE", 4)
    own = nodes(6)
    store.embedding(own)
    mixed: list[Any] = [*own[:5], TextNode(text="a text", embedding=[0.125] * 64)]
    with pytest.raises(InvalidRecordError, match="does not come from this store's model"):
        asyncio.run(store.async_add(mixed)) if through_async else store.add(mixed)


def test_a_rounded_vector_of_the_model_is_no_other_models(store: TwinVecVectorStore) -> None:
    row = [round(value, 2) for value in store.embedding.get_text_embedding("a text")]
    assert store.add([TextNode(text="a text", embedding=row)])
    long = [7 * value for value in store.embedding.get_text_embedding("another text")]
    assert store.add([TextNode(text="another text", embedding=long)])


@pytest.mark.parametrize("through_async", [False, True])
def test_metadata_is_checked_before_anything_is_embedded(
    own: TwinVecEmbedding, monkeypatch: pytest.MonkeyPatch, through_async: bool
) -> None:
    monkeypatch.setattr(llama_index_twinvec.nodes, "_AT_ONCE", 4)
    with TwinVecVectorStore(own) as store:
        counter, given = Counter(own.embedder), nodes(12)
        given[11].metadata["bad"] = object()
        with pytest.raises(InvalidRecordError, match=r"record 'n11'.*metadata\['bad'\]"):
            asyncio.run(store.async_add(given)) if through_async else store.add(given)
        assert (counter.texts, store.client.count()) == (0, 0)


# --- one ranking, whoever asks


@pytest.mark.parametrize("fusion", [None, "rrf", Fusion("weighted", 1.0, 0.3)])
def test_every_class_ranks_alike(gte: Embedder, fusion: Any) -> None:
    inner = MemoryStore(StoreConfig.for_embedder(gte))
    with TwinVecVectorStore(TwinVecEmbedding(embedder=gte), store=inner, fusion=fusion) as store:
        store.add(nodes())
        options: dict[str, Any] = {} if fusion is None else {"fusion": fusion}
        expected = [(r.record.id, r.score) for r in store.index.search(QUERY, k=8, **options)]
        index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
        hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=8)
        from langchain_twinvec import TwinVecEmbeddings

        langchain = LangChainStore(TwinVecEmbeddings(embedder=gte), store=inner, fusion=fusion)
        rankings: list[list[tuple[Any, Any]]] = [
            [(n.node_id, n.score) for n in HybridRetriever(store, similarity_top_k=8).retrieve(QUERY)],
            [(n.node_id, n.score) for n in asyncio.run(hybrid.aretrieve(QUERY))],
            [(n.node_id, n.score) for n in hybrid.retrieve(QUERY)],
            [(document.id, score) for document, score in langchain.similarity_search_with_score(QUERY, k=8)],
        ]
        for ranking in rankings:
            assert [id for id, _ in ranking] == [id for id, _ in expected]
            assert [score for _, score in ranking] == pytest.approx([score for _, score in expected])
        weighed = HybridRetriever(store, similarity_top_k=8, alpha=0.2).retrieve(QUERY)
        assert [(n.node_id, n.score) for n in weighed] != expected


# --- gates


def test_a_cutoff_is_a_cosine_whichever_half_has_found_a_node(store: TwinVecVectorStore) -> None:
    store.add(nodes())
    everything = HybridRetriever(store, similarity_top_k=40).retrieve(QUERY)
    cosines = {node.node_id: node.metadata["_twinvec"]["dense_score"] for node in everything}
    cutoff = sorted(cosines.values())[30]
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    kept = [node.node_id for node in everything if cosines[node.node_id] >= cutoff]
    assert 0 < len(kept) < 40
    cut = HybridRetriever(store, similarity_top_k=40, similarity_cutoff=cutoff)
    assert [node.node_id for node in cut.retrieve(QUERY)] == kept
    own = index.as_retriever(
        similarity_top_k=40, vector_store_query_mode="hybrid", vector_store_kwargs={"min_dense": cutoff}
    )
    assert [node.node_id for node in own.retrieve(QUERY)] == kept
    assert HybridRetriever(store, similarity_cutoff=0.9999).retrieve(QUERY) == []
    words = HybridRetriever(store, similarity_top_k=40, min_sparse=1e-9).retrieve(QUERY)
    assert {node.node_id for node in words} == {
        node.node_id for node in HybridRetriever(store, mode="sparse", similarity_top_k=40).retrieve(QUERY)
    }
    with pytest.raises(ConfigurationError, match="min_dense"):
        HybridRetriever(store, mode="sparse", similarity_cutoff=0.5)


# --- LlamaIndex's words, events and cache


def test_the_words_of_llamaindexs_own_retriever(store: TwinVecVectorStore) -> None:
    store.add(nodes())
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    words: list[dict[str, Any]] = [
        {"alpha": 0.3, "similarity_top_k": 5},
        {"similarity_top_k": 6, "sparse_top_k": 4, "hybrid_top_k": 3},
        {"doc_ids": ["doc1"], "similarity_top_k": 20},
        {"doc_ids": []},
        {"node_ids": ["n03", "n04"]},
    ]
    mode = VectorStoreQueryMode.HYBRID
    for given in words:
        theirs = VectorIndexRetriever(index, vector_store_query_mode=mode, **given).retrieve(QUERY)
        ours = HybridRetriever(index, **given).retrieve(QUERY)
        assert [(n.node_id, n.score) for n in ours] == [(n.node_id, n.score) for n in theirs]
    assert HybridRetriever(index, node_ids=[]).retrieve(QUERY) == []
    diverse = index.as_retriever(vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.3})
    ours = HybridRetriever(index, mode="dense", mmr_threshold=0.3, similarity_top_k=2).retrieve(QUERY)
    assert [n.node_id for n in ours] == [n.node_id for n in diverse.retrieve(QUERY)]


@pytest.mark.parametrize("through_async", [False, True])
def test_a_query_is_counted_and_cached_as_an_index_does(own: TwinVecEmbedding, through_async: bool) -> None:
    def retrieve() -> int:
        retriever = HybridRetriever(store, mode="dense", callback_manager=CallbackManager([tokens]))
        return len(asyncio.run(retriever.aretrieve("apple pie")) if through_async else retriever.retrieve("apple pie"))

    tokens = TokenCountingHandler(tokenizer=str.split)
    own.embeddings_cache = SimpleKVStore()
    with TwinVecVectorStore(own) as store:
        store.add([TextNode(text="apple pie"), TextNode(text="fig tart")])
        assert retrieve() == 2
        assert tokens.total_embedding_token_count == 2
        own.embedder._core.clear_memo()  # type: ignore[attr-defined]
        counter = Counter(own.embedder)
        assert retrieve() == 2
        assert counter.texts == 0


def test_what_is_written_to_a_found_nodes_metadata_stays(store: TwinVecVectorStore) -> None:
    store.add(nodes(4))
    found = HybridRetriever(store).retrieve(QUERY)[0]
    found.metadata["x"] = 1
    found.metadata.update(y=2)
    found.metadata.setdefault("z", 3)
    del found.metadata["n"]
    assert {name: found.node.metadata.get(name) for name in "xyzn"} == {"x": 1, "y": 2, "z": 3, "n": None}
    assert "_twinvec" not in found.node.metadata
    assert store.get_nodes([found.node_id])[0].metadata.keys() >= {"n"}

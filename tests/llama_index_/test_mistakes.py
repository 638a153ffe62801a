"""What people write by mistake, and what they are told: LlamaIndex's own words for what they meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilter, VectorStoreQuery

from langchain_twinvec import TwinVecEmbeddings
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecSparseEmbedding, TwinVecVectorStore
from twinvec import Embedder
from twinvec.errors import ConfigurationError, FilterError, InvalidRecordError, PromptError


def index_over(store: TwinVecVectorStore) -> VectorStoreIndex:
    return VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)


Act = Callable[[TwinVecVectorStore], Any]
YEAR: Any = {"year": 2020}
MISTAKES: dict[str, tuple[Act, type[Exception], str]] = {
    "another store's word for the collection": (
        lambda s: TwinVecVectorStore(s.embedding, collection_name="kb"),
        ConfigurationError,
        "collection_name= is collection=",
    ),
    "another store's word for the folder": (
        lambda s: TwinVecVectorStore(s.embedding, persist_dir="index/"),
        ConfigurationError,
        "persist_dir= is path=",
    ),
    "hybrid is asked for, not given by the model": (
        lambda s: TwinVecVectorStore(s.embedding, enable_hybrid=True),
        ConfigurationError,
        "hybrid if the embedding has a sparse half",
    ),
    "the dimension is said": (
        lambda s: TwinVecVectorStore(s.embedding, dim=64),
        ConfigurationError,
        "the embedding knows its dimension",
    ),
    "a url without its scheme": (
        lambda s: TwinVecVectorStore(s.embedding, url="localhost:6333"),
        ConfigurationError,
        "must begin with http://",
    ),
    "an Embedder for an embedding": (
        lambda s: TwinVecVectorStore(s.index.embedder),  # type: ignore[arg-type]
        ConfigurationError,
        r"not Embedder: see TwinVecEmbedding\(embedder=",
    ),
    "LangChain's class": (
        lambda s: TwinVecVectorStore(TwinVecEmbeddings(embedder=s.index.embedder)),  # type: ignore[arg-type]
        ConfigurationError,
        "must be a LlamaIndex embedding, not TwinVecEmbeddings",
    ),
    "a model's name for an embedding": (
        lambda s: TwinVecVectorStore("Alibaba-NLP/gte-multilingual-base"),  # type: ignore[arg-type]
        ConfigurationError,
        "must be a LlamaIndex embedding, not str",
    ),
    "the sparse half said twice": (
        lambda s: TwinVecVectorStore(s.embedding, sparse="bm25"),
        ConfigurationError,
        "pass it to that",
    ),
    "an index with another embed_model of equal dimension": (
        lambda s: VectorStoreIndex.from_documents(
            [Document(text="a")], StorageContext.from_defaults(vector_store=s), embed_model=MockEmbedding(64)
        ),
        InvalidRecordError,
        "pass the index the same embed_model as the store",
    ),
    "an index with another embed_model": (
        lambda s: VectorStoreIndex.from_documents(
            [Document(text="a")], StorageContext.from_defaults(vector_store=s), embed_model=MockEmbedding(8)
        ),
        InvalidRecordError,
        "has 8 dimensions, this store's model has 64",
    ),
    "one node instead of a list": (
        lambda s: s.add(TextNode(text="a")),  # type: ignore[arg-type]
        TypeError,
        "a list of nodes, not a TextNode",
    ),
    "texts instead of nodes": (
        lambda s: s.add(["a text"]),  # type: ignore[list-item]
        TypeError,
        r"not str: TextNode\(text=",
    ),
    "a dict as filters": (
        lambda s: (
            VectorStoreIndex.from_vector_store(s, embed_model=s.embedding).as_retriever(filters=YEAR).retrieve("a")
        ),
        FilterError,
        "filters must be MetadataFilters, not dict",
    ),
    "one filter as filters": (
        lambda s: HybridRetriever(s, filters=MetadataFilter(key="year", value=2020)),  # type: ignore[arg-type]
        FilterError,
        r"not MetadataFilter: MetadataFilters\(filters=",
    ),
    "k": (lambda s: HybridRetriever(s, k=3), ConfigurationError, "k=: use similarity_top_k= instead"),
    "top_k": (lambda s: HybridRetriever(s, top_k=3), ConfigurationError, "top_k=: use similarity_top_k= instead"),
    "filter": (lambda s: HybridRetriever(s, filter=YEAR), ConfigurationError, "filter=: use filters= instead"),
    "the index' word for the mode": (
        lambda s: HybridRetriever(s, vector_store_query_mode="hybrid"),
        ConfigurationError,
        "vector_store_query_mode=: use mode= instead",
    ),
    "alpha in percent": (lambda s: HybridRetriever(s, alpha=50), ConfigurationError, "from 0 .* to 1"),
    "alpha for one half": (
        lambda s: HybridRetriever(s, alpha=0.5, mode="sparse"),
        ConfigurationError,
        "alpha weights both halves",
    ),
    "another store": (
        lambda s: HybridRetriever(SimpleVectorStore()),  # type: ignore[arg-type]
        ConfigurationError,
        "searches a TwinVecVectorStore, not SimpleVectorStore",
    ),
    "a mode that it does not have": (
        lambda s: s.query(VectorStoreQuery(query_str="a", mode="text_search")),  # type: ignore[arg-type]
        ConfigurationError,
        "TEXT_SEARCH is not supported by this store: use DEFAULT, SPARSE, HYBRID or MMR",
    ),
    "a task for a model without instructions": (
        lambda s: HybridRetriever(s, task="Find the answer"),
        PromptError,
        "instruction",
    ),
    "everything deleted by mistake": (lambda s: s.delete_nodes(), ConfigurationError, "clear"),
    "a store in memory persisted with its context": (
        lambda s: s.persist("default__vector_store.json"),  # as StorageContext.persist calls it
        ConfigurationError,
        "this store is in memory.*path=",
    ),
    "another class's word for the model": (
        lambda s: TwinVecEmbedding(model="x"),  # type: ignore[call-arg]
        TypeError,
        "unexpected keyword argument 'model': use model_name= instead",
    ),
    "HuggingFaceEmbedding's instruction": (
        lambda s: TwinVecEmbedding("x", query_instruction="query: "),  # type: ignore[call-arg]
        TypeError,
        "from_huggingface",
    ),
    "no model at all": (lambda s: TwinVecEmbedding(), ConfigurationError, "needs model_name= or embedder="),
    "options of a model that is open": (
        lambda s: TwinVecEmbedding(embedder=s.index.embedder, dim=32),
        ConfigurationError,
        "dim: already determined by the embedder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_llamaindexs_words(store: TwinVecVectorStore, mistake: str) -> None:
    act, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        act(store)
    assert store.client.count() == 0


def test_a_model_without_a_sparse_half_says_how_to_get_one(giga: Embedder, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='create it with sparse="bm25"'):
        TwinVecSparseEmbedding(embedder=giga)
    with TwinVecVectorStore(TwinVecEmbedding(embedder=giga), path=tmp_path / "index") as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
        with pytest.raises(ConfigurationError, match='sparse="bm25"'):
            index.as_retriever(vector_store_query_mode="hybrid").retrieve("a")

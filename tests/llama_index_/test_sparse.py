"""TwinVecSparseEmbedding: rows and events, and the adapters for LlamaIndex's Qdrant and Milvus stores."""

from __future__ import annotations

import asyncio
import sys
import types
from abc import ABC, abstractmethod
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from llama_index_.conftest import Gate, Recorder, passes_of_64
from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding, TwinVecSparseEmbedding
from support import TEXTS, sparse_of
from twinvec import Embedder
from twinvec.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
MILVUS = "llama_index.vector_stores.milvus"


class MilvusInterface(ABC):
    """BaseSparseEmbeddingFunction of llama-index-vector-stores-milvus 1.2.0, which CI does not install."""

    @abstractmethod
    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]: ...

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        raise AssertionError("must be native")

    @abstractmethod
    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]: ...

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        raise AssertionError("must be native")


# --- rows and events


def test_rows_are_the_embedders(embedding: TwinVecEmbedding, gte: Embedder) -> None:
    sparse = embedding.as_sparse()
    assert isinstance(sparse, BaseSparseEmbedding)
    documents = sparse_of(gte.embed_documents(TEXTS)).to_dicts()
    assert sparse.get_text_embedding_batch(TEXTS) == documents
    assert asyncio.run(sparse.aget_text_embedding_batch(TEXTS)) == documents
    assert sparse.get_text_embedding(TEXTS[0]) == asyncio.run(sparse.aget_text_embedding(TEXTS[0])) == documents[0]
    queries = sparse_of(gte.embed_queries(TEXTS)).to_dicts()
    assert [sparse.get_query_embedding(text) for text in TEXTS] == queries
    assert asyncio.run(sparse.aget_query_embedding(TEXTS[0])) == queries[0]
    assert {} in documents  # of the text without tokens
    assert {type(key) for key in queries[0]} | {type(value) for value in queries[0].values()} == {int, float}


def test_it_loads_a_model_by_itself(gte_folder: str) -> None:
    sparse = TwinVecSparseEmbedding(model_name=gte_folder, dtype="float32", embed_batch_size=5)
    assert sparse.get_text_embedding("hello")
    assert sparse.class_name() == "TwinVecSparseEmbedding"


def test_a_model_without_a_sparse_half_is_refused(giga: Embedder) -> None:
    with pytest.raises(ConfigurationError, match="no sparse half"):
        TwinVecSparseEmbedding(embedder=giga)
    with pytest.raises(ConfigurationError, match="no sparse half"):
        TwinVecEmbedding(embedder=giga).as_sparse()


def test_events_are_the_base_classs(embedding: TwinVecEmbedding, recorder: Recorder) -> None:
    sparse = embedding.as_sparse()
    row = sparse.get_query_embedding("a question")
    asyncio.run(sparse.aget_text_embedding_batch(["a", "b"]))
    assert recorder.names() == ["SparseEmbeddingStartEvent", "SparseEmbeddingEndEvent"] * 2
    assert recorder.events[0].model_dict["model_name"] == embedding.model_name
    assert (recorder.events[1].chunks, recorder.events[1].embeddings) == (["a question"], [row])
    assert recorder.events[3].chunks == ["a", "b"]


def test_concurrent_sparse_queries_share_forward_passes(embedding: TwinVecEmbedding, gate: Gate) -> None:
    sparse = embedding.as_sparse()
    assert asyncio.run(passes_of_64(gate, embedding.embedder, sparse.aget_query_embedding)) <= 3


def test_the_event_loop_goes_on_meanwhile(embedding: TwinVecEmbedding, gate: Gate) -> None:
    async def run() -> None:
        work = asyncio.gather(
            sparse.aget_query_embedding("a sparse query never seen"), sparse.aget_text_embedding("nor this document")
        )
        assert await asyncio.to_thread(gate.entered.wait, 60)
        gate.open.set()
        assert len(await work) == 2

    sparse = embedding.as_sparse()
    asyncio.run(run())


# --- dense and sparse are one forward pass


@pytest.mark.parametrize("memo_bytes", [0, 64 * 2**20])
def test_dense_then_sparse_is_one_pass_per_text(own: TwinVecEmbedding, memo_bytes: int) -> None:
    """Also for more texts than the memo keeps."""
    embedding = TwinVecEmbedding(model_name=own.model_name, dtype="float32", memo_bytes=memo_bytes)
    sparse = embedding.as_sparse()
    texts = [f"text number {i}" for i in range(300)]
    counter = Counter(own.embedder)
    dense = embedding.get_text_embedding_batch(texts)
    rows = sparse.get_text_embedding_batch(texts)
    assert counter.texts == 300
    # a batch of another size may differ in the last digit
    both = sparse_of(own.embedder.embed_documents(texts)).to_dicts()
    assert [row.keys() for row in rows] == [row.keys() for row in both]
    for row, other in zip(rows, both, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert len(dense) == 300


def test_a_query_is_one_pass(own: TwinVecEmbedding) -> None:
    counter = Counter(own.embedder)
    own.get_query_embedding("a question")
    own.as_sparse().get_query_embedding("a question")
    assert counter.texts == 1


# --- Qdrant


def indexed(own: TwinVecEmbedding, **options: Any) -> VectorStoreIndex:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import AsyncQdrantClient, QdrantClient

    sparse = own.as_sparse()
    store = QdrantVectorStore(
        "kb",
        client=QdrantClient(":memory:"),
        aclient=AsyncQdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    storage = StorageContext.from_defaults(vector_store=store)
    nodes = [
        TextNode(text=f"number {i} {'sorting lists' if i % 2 else 'the capital of Russia'}", metadata={"n": i})
        for i in range(70)
    ]
    return VectorStoreIndex(nodes, storage_context=storage, embed_model=own, **options)


@pytest.mark.parametrize("use_async", [False, True])
def test_llamaindexs_qdrant_store_makes_one_pass_per_text(own: TwinVecEmbedding, use_async: bool) -> None:
    counter = Counter(own.embedder)
    index = indexed(own, use_async=use_async)
    assert counter.texts == 70
    retriever = index.as_retriever(vector_store_query_mode=VectorStoreQueryMode.HYBRID, similarity_top_k=5)
    retrieve = retriever.aretrieve("sorting lists") if use_async else None
    found = asyncio.run(retrieve) if retrieve is not None else retriever.retrieve("sorting lists")
    assert len(found) == 5
    assert counter.texts == 71


def test_llamaindexs_qdrant_store_finds_what_the_rows_say(own: TwinVecEmbedding) -> None:
    index = indexed(own)
    found = index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=3).retrieve("capital number 7")
    nodes = index.vector_store.get_nodes()
    texts = [node.get_content("embed") for node in nodes]  # type: ignore[arg-type]
    query = own.embedder.embed_queries(["capital number 7"])
    scores = sparse_of(query).similarity(sparse_of(own.embedder.embed_documents(texts)))[0]
    assert [node.score for node in found] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)


# --- Milvus


@pytest.fixture
def milvus(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """The interface of the package: its own where it is installed."""
    try:
        from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction
    except ModuleNotFoundError:
        utils = types.ModuleType(f"{MILVUS}.utils")
        utils.BaseSparseEmbeddingFunction = MilvusInterface  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, MILVUS, types.ModuleType(MILVUS))
        monkeypatch.setitem(sys.modules, utils.__name__, utils)
        return MilvusInterface
    return BaseSparseEmbeddingFunction  # type: ignore[no-any-return]


def test_the_milvus_function_gives_the_same_rows_without_another_pass(own: TwinVecEmbedding, milvus: type[Any]) -> None:
    function = own.as_sparse().for_milvus()
    assert isinstance(function, milvus)
    counter = Counter(own.embedder)
    own.get_text_embedding_batch(TEXTS)
    own.get_query_embedding("a question")
    # the store asks for one node at a time
    documents = [function.encode_documents([text])[0] for text in TEXTS]
    assert counter.texts == len(TEXTS) + 1
    assert documents == sparse_of(own.embedder.embed_documents(TEXTS)).to_dicts()
    assert documents == asyncio.run(function.async_encode_documents(TEXTS))
    queries = function.encode_queries(["a question"])
    assert queries == asyncio.run(function.async_encode_queries(["a question"]))
    assert queries == sparse_of(own.embedder.embed_queries(["a question"])).to_dicts()
    assert counter.texts == len(TEXTS) + 1


def test_without_the_milvus_package_the_command_is_named(
    embedding: TwinVecEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{MILVUS}.utils", None)
    monkeypatch.setitem(sys.modules, MILVUS, None)
    with pytest.raises(ConfigurationError, match="pip install llama-index-vector-stores-milvus"):
        embedding.as_sparse().for_milvus()

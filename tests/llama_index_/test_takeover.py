"""What other classes of LlamaIndex have left: collections of its Qdrant store, configurations of its embedding."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from llama_index_.conftest import local_clients
from llama_index_.counting import Counter
from llama_index_.samples import QUERY, TEXTS, nodes
from llama_index_twinvec import DifferenceWarning, HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from support import dense_of
from twinvec.errors import ConfigurationError, InvalidRecordError, StoreMismatchError, StoreNotFoundError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Local mode performs exact:UserWarning", "ignore:Payload indexes have no effect:UserWarning"
)
NODES = [node.model_copy(update={"id_": f"00000000-0000-0000-0000-0000000000{i:02}"}) for i, node in enumerate(nodes())]


# --- an own client


@pytest.mark.parametrize("through_async", [False, True])
def test_a_client_of_ones_own(embedding: TwinVecEmbedding, through_async: bool) -> None:
    client, aclient = local_clients()
    with TwinVecVectorStore(embedding, client=client, aclient=aclient, collection="kb") as store:
        given = nodes(4)
        ids = asyncio.run(store.async_add(given)) if through_async else store.add(given)
        assert len(ids) == client.count("kb").count == 4
        retriever = HybridRetriever(store)
        assert len(asyncio.run(retriever.aretrieve(QUERY)) if through_async else retriever.retrieve(QUERY)) == 4
    assert client.count("kb").count == 4, "the caller's client stays open"
    with TwinVecVectorStore(embedding, client=client, collection="kb") as again:
        assert len(again.get_nodes(limit=3)) == 3


# --- collections of QdrantVectorStore


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


def written(client: QdrantClient, embedding: Any, **options: Any) -> None:
    store = QdrantVectorStore("theirs", client=client, **options)
    given = [node.model_copy() for node in NODES]
    for node in given:
        node.embedding = embedding.get_text_embedding(node.get_content(MetadataMode.EMBED))
    store.add(given)


@pytest.mark.parametrize("kind", ["dense", "hybrid", "unnamed"])
def test_a_collection_is_taken_over_without_embedding_it_again(
    own: TwinVecEmbedding, client: QdrantClient, kind: str, tmp_path: Path
) -> None:
    sparse = own.as_sparse()
    hybrid: dict[str, Any] = {
        "enable_hybrid": True,
        "sparse_doc_fn": sparse.sparse_doc_fn,
        "sparse_query_fn": sparse.sparse_query_fn,
    }
    if kind == "unnamed":
        distance = models.Distance.COSINE
        client.create_collection(
            "theirs", vectors_config=models.VectorParams(size=own.embedder.dim or 0, distance=distance)
        )
    written(client, own, **(hybrid if kind == "hybrid" else {}))
    with TwinVecVectorStore.from_qdrant(own, client, "theirs", path=tmp_path / "index") as store:
        same = {node.node_id: node for node in store.get_nodes()}
        expected = dense_of(own.embedder.embed_documents(TEXTS))
        for node, row in zip(NODES, expected, strict=True):
            taken = same[node.node_id]
            np.testing.assert_allclose(taken.get_embedding(), row, atol=1e-6)
            taken.embedding = None
            assert taken.model_dump_json() == node.model_dump_json()
        theirs = QdrantVectorStore("theirs", client=client)
        query = VectorStoreQuery(query_embedding=own.get_query_embedding(QUERY), similarity_top_k=5)
        assert store.query(query).ids == theirs.query(query).ids
        assert len(HybridRetriever(store).retrieve(QUERY)) == 10
    assert client.count("theirs").count == 40


def test_without_a_sparse_half_only_one_node_is_embedded(giga_folder: str, client: QdrantClient) -> None:
    embedding = TwinVecEmbedding(model_name=giga_folder, dtype="float32", memo_bytes=0)
    written(client, embedding)
    counter = Counter(embedding.embedder)
    TwinVecVectorStore.from_qdrant(embedding, client, "theirs").close()
    assert counter.texts == 1


def test_what_cannot_be_taken_over_is_refused(
    embedding: TwinVecEmbedding, client: QdrantClient, own: TwinVecEmbedding
) -> None:
    take = TwinVecVectorStore.from_qdrant
    with pytest.raises(StoreNotFoundError, match="no collection theirs"):
        take(embedding, client, "theirs")
    written(client, own)
    with pytest.raises(InvalidRecordError, match="does not come from this store's model"):
        take(embedding, client, "theirs")
    other = TwinVecEmbedding(model_name=own.model_name, dtype="float32", dim=32)
    with pytest.raises(StoreMismatchError, match=r"64 dimensions, the embedding 32"):
        take(other, client, "theirs")
    size = models.VectorParams(size=embedding.embedder.dim or 0, distance=models.Distance.COSINE)
    several = models.VectorParams(
        size=4,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    )
    for name, vectors, message in (
        ("two", {"x": size, "y": size}, "several dense vectors"),
        ("many", several, "several vectors per node"),
        ("none", {}, "no dense vectors"),
    ):
        client.create_collection(name, vectors_config=vectors, sparse_vectors_config={"s": models.SparseVectorParams()})
        with pytest.raises(StoreMismatchError, match=message):
            take(embedding, client, name)
    client.create_collection("langchain", vectors_config=size)
    payload = {"page_content": "a text", "metadata": {}}
    client.upsert("langchain", [models.PointStruct(id=1, vector=[1.0] * size.size, payload=payload)])
    with pytest.raises(InvalidRecordError, match="nor 'text', see text_key=, but metadata, page_content"):
        take(embedding, client, "langchain")
    with pytest.raises(StoreMismatchError, match="not created by TwinVec"):
        TwinVecVectorStore(embedding, client=client, collection="theirs")


def test_payloads_of_the_first_versions(embedding: TwinVecEmbedding, client: QdrantClient) -> None:
    size = models.VectorParams(size=64, distance=models.Distance.COSINE)
    client.create_collection("old", vectors_config=size)
    payload = {"text": "an old text", "doc_id": "d1", "ref_doc_id": "d1", "year": 2022, "relationships": '{"1": "d1"}'}
    vector = embedding.get_text_embedding("an old text")
    client.upsert("old", [models.PointStruct(id=7, vector=vector, payload=payload)])
    with TwinVecVectorStore.from_qdrant(embedding, client, "old") as store:
        (node,) = store.get_nodes()
        assert (node.node_id, node.get_content(), node.ref_doc_id) == ("7", "an old text", "d1")
        assert node.metadata["year"] == 2022


# --- configurations of HuggingFaceEmbedding

KEYWORDS: list[dict[str, Any]] = [
    {"query_instruction": "query: ", "text_instruction": "passage: "},
    {"query_instruction": "q: ", "text_instruction": "d: ", "max_length": 8, "embed_batch_size": 3, "device": "cpu"},
    {"query_instruction": "q: ", "text_instruction": "d: ", "cache_folder": None, "normalize": True},
    {"query_instruction": "q: ", "text_instruction": "d: ", "model_kwargs": {"torch_dtype": "float32"}},
]


@pytest.mark.filterwarnings("ignore::twinvec.errors.TruncationWarning")
@pytest.mark.parametrize("keywords", KEYWORDS)
def test_migrating_is_one_edit(e5_folder: str, keywords: dict[str, Any]) -> None:
    texts = ["the capital of Russia is Moscow", "one two three four five six seven eight nine ten"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferenceWarning)
        ours = TwinVecEmbedding.from_huggingface(model_name=e5_folder, **keywords, dtype="float32")
    peer = HuggingFaceEmbedding(model_name=e5_folder, **keywords)
    np.testing.assert_allclose(ours.get_text_embedding_batch(texts), peer.get_text_embedding_batch(texts), atol=2e-6)
    for text in texts:
        np.testing.assert_allclose(ours.get_query_embedding(text), peer.get_query_embedding(text), atol=2e-6)
    again = TwinVecEmbedding.from_huggingface(peer, dtype="float32")
    np.testing.assert_allclose(again.get_query_embedding("x"), peer.get_query_embedding("x"), atol=2e-6)


def test_differences_are_said(e5_folder: str) -> None:
    with pytest.warns(DifferenceWarning, match="the model's prompt 'passage: ' goes before each document"):
        TwinVecEmbedding.from_huggingface(e5_folder, query_instruction="query: ")
    with pytest.warns(DifferenceWarning, match="length 1"):
        TwinVecEmbedding.from_huggingface(e5_folder, query_instruction="", text_instruction="", normalize=False)
    with pytest.warns(DifferenceWarning, match="serves all calls"):
        TwinVecEmbedding.from_huggingface(
            e5_folder, query_instruction="", text_instruction="", parallel_process=True, target_devices=["cpu", "cpu"]
        )


def test_what_has_no_counterpart_is_refused(e5_folder: str) -> None:
    for keywords, message in (
        ({"backend": "onnx"}, "backend='onnx'"),
        ({"pooling": "mean"}, "pooling"),
        ({"truncate_dim": 16}, "not trained for fewer dimensions"),
        ({"model_kwargs": {"quantization_config": 1}}, r"model_kwargs\['quantization_config'\]"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            TwinVecEmbedding.from_huggingface(e5_folder, **keywords)
    with pytest.raises(TypeError, match="expected HuggingFaceEmbedding or a model's name, not int"):
        TwinVecEmbedding.from_huggingface(3)  # type: ignore[arg-type]


def test_own_keywords_go_along(e5_folder: str) -> None:
    made = TwinVecEmbedding.from_huggingface(
        e5_folder, query_instruction="q: ", text_instruction="d: ", sparse="bm25", memo_bytes=0
    )
    with TwinVecVectorStore(made) as store:
        store.add(nodes(4))
        index = VectorStoreIndex.from_vector_store(store, embed_model=made)
        assert index.as_retriever(vector_store_query_mode=VectorStoreQueryMode.HYBRID).retrieve(QUERY)

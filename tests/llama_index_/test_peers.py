"""Beside LlamaIndex's own classes: the same vectors, none of their defects, one model for both frameworks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.embeddings.huggingface.utils import format_query

from langchain_twinvec import TwinVecEmbeddings
from llama_index_ import core_script
from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from support import dense_of
from twinvec import Embedder
from twinvec.engine.registry import REGISTRY

TEXTS = ["hello", "the capital of Russia is Moscow", "Столица России", "line one\nline two\n\tindented", "  spaces  "]


@pytest.fixture(scope="module")
def peer(e5_folder: str) -> HuggingFaceEmbedding:
    return HuggingFaceEmbedding(
        e5_folder, query_instruction="query: ", text_instruction="passage: ", device="cpu", embed_batch_size=2
    )


@pytest.fixture(scope="module")
def ours(e5_folder: str) -> TwinVecEmbedding:
    return TwinVecEmbedding(model_name=e5_folder, dtype="float32")


def test_the_same_checkpoint_gives_the_same_vectors(peer: HuggingFaceEmbedding, ours: TwinVecEmbedding) -> None:
    for text in TEXTS:
        np.testing.assert_allclose(ours.get_query_embedding(text), peer.get_query_embedding(text), atol=2e-6)
    expected = peer.get_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(ours.get_text_embedding_batch(TEXTS), expected, atol=2e-6)
    np.testing.assert_allclose(asyncio.run(ours.aget_text_embedding_batch(TEXTS)), expected, atol=2e-6)


def test_both_find_the_same_in_the_same_store(peer: HuggingFaceEmbedding, ours: TwinVecEmbedding) -> None:
    found = []
    for model in (peer, ours):
        storage = StorageContext.from_defaults(vector_store=SimpleVectorStore())
        nodes = [TextNode(text=f"{text} {i}") for i in range(4) for text in TEXTS]
        index = VectorStoreIndex(nodes, storage_context=storage, embed_model=model)
        found.append([node.text for node in index.as_retriever(similarity_top_k=5).retrieve("capital")])
    assert found[0] == found[1]


def test_the_peer_drops_the_checkpoints_own_query_prompt(e5_folder: str, ours: TwinVecEmbedding) -> None:
    peer = HuggingFaceEmbedding(e5_folder, device="cpu")
    lost = peer.get_query_embedding("hello")
    unprompted = dense_of(ours.embedder.embed_queries(["hello"], prompt=""))[0]
    np.testing.assert_allclose(lost, unprompted, atol=2e-6)
    assert float(np.dot(lost, ours.get_query_embedding("hello"))) < 0.9999


def test_other_clients_change_the_query(giga_folder: str) -> None:
    """Their ``format_query`` puts a second space before it and strips its end; ours is the template, byte for byte."""
    instruction = "Instruct: T\nQuery: "
    assert format_query(" hello ", "any", instruction) == "Instruct: T\nQuery:   hello"
    ours = TwinVecEmbedding(model_name=giga_folder, dtype="float32", task="T")
    exact = dense_of(ours.embedder.embed_documents([f"{instruction} hello "], prompt=""))[0]
    theirs = dense_of(ours.embedder.embed_documents([format_query(" hello ", "any", instruction)], prompt=""))[0]
    np.testing.assert_allclose(ours.get_query_embedding(" hello "), exact, atol=1e-6)
    assert np.abs(exact - theirs).max() > 1e-4


def test_the_peer_cannot_be_written_down(peer: HuggingFaceEmbedding, ours: TwinVecEmbedding, e5_folder: str) -> None:
    with pytest.raises(TypeError, match="num_workers"):
        HuggingFaceEmbedding.from_dict(peer.to_dict())
    with pytest.raises(TypeError, match="num_workers"):
        HuggingFaceEmbedding(e5_folder, device="cpu", num_workers=2)
    assert TwinVecEmbedding.from_dict(ours.to_dict()) == ours
    assert TwinVecEmbedding(model_name=e5_folder, dtype="float32", num_workers=2).num_workers == 2


def test_the_peer_makes_a_pass_for_each_concurrent_query(
    peer: HuggingFaceEmbedding, ours: TwinVecEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(model: Any) -> None:
        await asyncio.gather(*(model.aget_query_embedding(f"question number {i}") for i in range(64)))

    calls: list[int] = []
    encode = peer._model.encode

    def counted(inputs: list[str], **options: Any) -> Any:
        calls.append(len(inputs))
        return encode(inputs, **options)

    monkeypatch.setattr(peer._model, "encode", counted)
    asyncio.run(run(peer))
    assert calls == [1] * 64
    counter = Counter(ours.embedder)
    asyncio.run(run(ours))  # how many passes at most, is tested with a device that is held
    assert counter.texts == 64 > counter.forwards


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
def test_the_peers_async_alpha_of_nothing_is_a_half_and_ours_is_nothing(own: TwinVecEmbedding) -> None:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import AsyncQdrantClient

    async def run(store: Any) -> tuple[list[str], list[str]]:
        await store.async_add([node.model_copy() for node in nodes])
        asked: dict[str, Any] = {"query_str": "sorting number 7", "query_embedding": vector, "similarity_top_k": 6}
        hybrid = VectorStoreQuery(**asked, mode=VectorStoreQueryMode.HYBRID, alpha=0.0)
        sparse = VectorStoreQuery(**asked, mode=VectorStoreQueryMode.SPARSE)
        return (await store.aquery(hybrid)).ids, (await store.aquery(sparse)).ids

    ids = [f"00000000-0000-0000-0000-0000000000{i:02}" for i in range(20)]
    nodes = [TextNode(id_=id, text=f"number {i} {'sorting lists' if i % 2 else 'capital'}") for i, id in enumerate(ids)]
    own(nodes)
    vector, side = own.get_query_embedding("sorting number 7"), own.as_sparse()
    functions: dict[str, Any] = {"sparse_doc_fn": side.sparse_doc_fn, "sparse_query_fn": side.sparse_query_fn}
    theirs = QdrantVectorStore("kb", aclient=AsyncQdrantClient(":memory:"), enable_hybrid=True, **functions)
    hybrid, sparse = asyncio.run(run(theirs))
    assert hybrid != sparse
    with TwinVecVectorStore(own) as store:
        hybrid, sparse = asyncio.run(run(store))
        assert hybrid == sparse


# --- one program, one model


def test_a_program_against_the_core_runs_unchanged(embedding: TwinVecEmbedding, tmp_path: Path) -> None:
    folders = iter(["first", "second"])
    reference = core_script.run(MockEmbedding(embed_dim=8), SimpleVectorStore)
    ours = core_script.run(embedding, lambda: TwinVecVectorStore(embedding, path=tmp_path / next(folders)))
    assert ours == reference
    assert reference["filtered"] == ["Москва — столица России."]


def test_both_frameworks_share_one_model(own: TwinVecEmbedding) -> None:
    cores = len(REGISTRY)
    by_path = TwinVecEmbeddings(model=own.model_name, dtype="float32")
    by_embedder = TwinVecEmbeddings(embedder=own.embedder)
    counter = Counter(own.embedder)
    assert (
        own.get_query_embedding("a question")
        == by_path.embed_query("a question")
        == by_embedder.embed_query("a question")
    )
    assert own.get_text_embedding_batch(TEXTS) == by_path.embed_documents(TEXTS)
    assert counter.texts == 1 + len(TEXTS)
    assert len(REGISTRY) == cores, "the weights are in memory twice"
    assert isinstance(by_path.embedder, Embedder)
    assert isinstance(own.embedder, Embedder)
    assert by_path.embedder._core is own.embedder._core

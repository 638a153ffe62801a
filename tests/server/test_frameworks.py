"""LangChain, LlamaIndex, indexes, stores and ingestion over a RemoteEmbedder."""

from __future__ import annotations

import asyncio
import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.load import dumps, loads
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import Document, TextNode

import langchain_twinvec
import llama_index_twinvec
from langchain_.gate import Gate
from server.conftest import Connect, Hosts
from support import TEXTS
from twinvec import Embedder, RemoteEmbedder, Task
from twinvec.errors import CheckpointError, ConfigurationError, FingerprintMismatchError, RemoteError
from twinvec_stores import Explanation, HybridIndex, MemoryStore, Result, StoreConfig, ingest, open_store

KEY = "a-secret-key"
TASK = "Given a question, find a paragraph with the answer"
DOCUMENTS = [text for text in TEXTS if text.strip()]


@pytest.fixture
def remote(connect: Connect, gte: Embedder) -> RemoteEmbedder:
    return connect(gte, api_key=KEY)


# --- LangChain


async def test_langchain_embeddings_are_those_of_the_embedder(remote: RemoteEmbedder, gte: Embedder) -> None:
    near = langchain_twinvec.TwinVecEmbeddings(embedder=gte)
    far = langchain_twinvec.TwinVecEmbeddings(embedder=remote)
    assert far.embed_documents(TEXTS) == near.embed_documents(TEXTS)
    assert far.embed_query("a") == near.embed_query("a")
    assert await far.aembed_documents(TEXTS) == near.embed_documents(TEXTS)
    assert await far.aembed_query("a") == near.embed_query("a")
    assert far.sparse().embed_documents(TEXTS) == near.sparse().embed_documents(TEXTS)
    assert await far.sparse().aembed_query("a b") == near.sparse().embed_query("a b")


def test_langchain_tasks(connect: Connect, giga: Embedder) -> None:
    far = langchain_twinvec.TwinVecEmbeddings(embedder=connect(giga), task=TASK)
    assert far.embed_query("a") == langchain_twinvec.TwinVecEmbeddings(embedder=giga, task=TASK).embed_query("a")
    assert far.with_task("similarity").embed_documents(["a"]) != far.embed_documents(["a"])


async def test_a_langchain_store_made_here_opens_with_the_remote(
    remote: RemoteEmbedder, gte: Embedder, tmp_path: Path
) -> None:
    near = langchain_twinvec.TwinVecEmbeddings(embedder=gte)
    far = langchain_twinvec.TwinVecEmbeddings(embedder=remote)
    with langchain_twinvec.TwinVecVectorStore.from_texts(DOCUMENTS, near, path=tmp_path / "index") as store:
        expected = store.similarity_search_with_score("capital of China", k=3)
    with langchain_twinvec.TwinVecVectorStore(far, path=tmp_path / "index") as store:
        assert store.similarity_search_with_score("capital of China", k=3) == expected
        assert await store.asimilarity_search_with_score("capital of China", k=3) == expected
        store.add_texts(["one more text"])
        retriever = store.as_retriever(k=1)
        assert retriever.invoke("one more text")[0].page_content == "one more text"
        (found,) = await store.asimilarity_search("one more text", k=1, explain=True)
        assert found.metadata["_twinvec"]["terms"]


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_what_is_written_down_of_langchains_classes(
    remote: RemoteEmbedder, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = langchain_twinvec.TwinVecEmbeddings(embedder=remote)
    written = [dumps(far), dumps(far.sparse()), repr(far), repr(pickle.dumps(far)), repr(far.model_dump())]
    assert not [text for text in written if KEY in text]
    with pytest.raises(NotImplementedError, match="it contains an object, embedder="):
        loads(
            written[0],
            allowed_objects=[langchain_twinvec.TwinVecEmbeddings],
            valid_namespaces=["langchain_twinvec"],
        )
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)
    made = pickle.loads(pickle.dumps(far))
    assert made.embed_query("a") == far.embed_query("a")
    made.embedder.close()
    assert copy.deepcopy(far).embedder is remote


# --- LlamaIndex


async def test_llama_index_embeddings_are_those_of_the_embedder(remote: RemoteEmbedder, gte: Embedder) -> None:
    near = llama_index_twinvec.TwinVecEmbedding(embedder=gte)
    far = llama_index_twinvec.TwinVecEmbedding(embedder=remote)
    assert far.get_text_embedding_batch(DOCUMENTS) == near.get_text_embedding_batch(DOCUMENTS)
    assert far.get_query_embedding("a") == near.get_query_embedding("a")
    assert await far.aget_query_embedding("a") == near.get_query_embedding("a")
    assert far.as_sparse().get_text_embedding("a b") == near.as_sparse().get_text_embedding("a b")
    assert (far.model_name, far.dim, far.max_length) == (Path(near.model_name).name, near.dim, near.max_length)


def test_a_pipeline_takes_either_for_the_same(
    remote: RemoteEmbedder, gte: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [TextNode(text="one"), TextNode(text="two")]
    folder = Path(gte.spec.model)
    monkeypatch.chdir(folder.parent)
    near = llama_index_twinvec.TwinVecEmbedding(embedder=Embedder(replace(gte.spec, model=folder.name)))
    far = llama_index_twinvec.TwinVecEmbedding(embedder=remote)
    assert get_transformation_hash(nodes, far) == get_transformation_hash(nodes, near)


def test_a_llama_index_store_over_a_remote(remote: RemoteEmbedder, gte: Embedder, tmp_path: Path) -> None:
    from llama_index.core import StorageContext, VectorStoreIndex

    near, far = (llama_index_twinvec.TwinVecEmbedding(embedder=embedder) for embedder in (gte, remote))
    with llama_index_twinvec.TwinVecVectorStore(far, path=tmp_path / "index") as store:
        context = StorageContext.from_defaults(vector_store=store)
        pages = [Document(text=text) for text in DOCUMENTS]
        index = VectorStoreIndex.from_documents(pages, storage_context=context, embed_model=far)
        query = "what is the capital of China?"
        expected = [node.text for node in index.as_retriever(vector_store_query_mode="hybrid").retrieve(query)]
    with llama_index_twinvec.TwinVecVectorStore(near, path=tmp_path / "index") as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=near)
        found = index.as_retriever(vector_store_query_mode="hybrid").retrieve(query)
    assert [node.text for node in found] == expected


def test_what_is_written_down_of_llama_indexs_classes(
    connect: Connect, hosts: Hosts, giga: Embedder, gte: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = connect(giga, api_key=KEY)
    symmetric = Task("Find the same", symmetric=True)
    far = llama_index_twinvec.TwinVecEmbedding(embedder=remote, task=symmetric, embed_batch_size=7)
    settings = bytes.fromhex(far.to_dict()["settings"].removeprefix("<settings at 0x").removesuffix(">"))
    written = [far.to_json(), settings.decode(), repr(far), repr(pickle.dumps(far)), str(far.to_payload())]
    assert not [text for text in written if KEY in text]
    with pytest.raises(RemoteError, match="rejected the API key"):
        llama_index_twinvec.TwinVecEmbedding.from_dict(far.to_dict())
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)
    sent = len(hosts.requests)
    for url in (None, "http://elsewhere", "https://host-0", "http://host-0:81"):
        if url is not None:
            monkeypatch.setenv("TWINVEC_URL", url)
        with pytest.raises(RemoteError, match="rejected the API key"):
            llama_index_twinvec.TwinVecEmbedding.from_dict(far.to_dict())
    assert not [request for request in hosts.requests[sent:] if "authorization" in request.headers]
    monkeypatch.setenv("TWINVEC_URL", "http://host-0/")
    for cls, each in (
        (llama_index_twinvec.TwinVecEmbedding, far),
        (llama_index_twinvec.TwinVecSparseEmbedding, far.as_sparse()),
    ):
        for made in (cls.from_dict(each.to_dict()), pickle.loads(pickle.dumps(each))):
            assert isinstance(made.embedder, RemoteEmbedder)
            assert made == each
            assert made.task == symmetric
            assert made.get_text_embedding("a") == each.get_text_embedding("a")
            made.embedder.close()
    assert llama_index_twinvec.TwinVecEmbedding.from_dict(far.to_dict(), embedder=giga).embedder is giga
    connect(gte, api_key=KEY)
    hosts.answering["host-0"] = hosts.answering["host-1"]
    with pytest.raises(CheckpointError, match="http://host-0 serves a different model now"):
        llama_index_twinvec.TwinVecEmbedding.from_dict(far.to_dict())


def test_options_beside_a_remote_are_refused(remote: RemoteEmbedder) -> None:
    options: dict[str, Any] = {"embedder": remote, "dim": 32}
    for cls in (langchain_twinvec.TwinVecEmbeddings, llama_index_twinvec.TwinVecEmbedding):
        with pytest.raises(ConfigurationError, match="dim: already determined by"):
            cls(**options)


# --- stores


def plain(results: list[Result]) -> list[tuple[str, float, Explanation | None]]:
    return [(result.record.id, result.score, result.explanation) for result in results]


def test_a_store_made_here_opens_with_the_remote_and_the_other_way(
    remote: RemoteEmbedder, gte: Embedder, giga: Embedder, tmp_path: Path
) -> None:
    with HybridIndex(gte, open_store(tmp_path / "index", StoreConfig.for_embedder(gte))) as near:
        near.add(DOCUMENTS, ids=[str(i) for i in range(len(DOCUMENTS))])
        expected = plain(near.search("capital of Russia", k=4, explain=True))
    assert StoreConfig.for_embedder(remote).fingerprint == StoreConfig.for_embedder(gte).fingerprint
    with pytest.raises(ConfigurationError, match="need an Embedder, which RemoteEmbedder is not"):
        StoreConfig.for_embedder(remote, quantization="first_dim=8")
    with HybridIndex(remote, open_store(tmp_path / "index", StoreConfig.for_embedder(remote))) as far:
        assert plain(far.search("capital of Russia", k=4, explain=True)) == expected
        assert plain(asyncio.run(far.asearch("capital of Russia", k=4, explain=True))) == expected
        far.add(["one more"], ids=["more"])
    with open_store(tmp_path / "index") as store, pytest.raises(FingerprintMismatchError):
        HybridIndex(giga, store)


def test_bm25_over_a_remote(connect: Connect, giga: Embedder) -> None:
    remote = connect(giga)
    found = []
    for embedder in (giga, remote):
        with HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder))) as index:
            index.add(DOCUMENTS, ids=[str(i) for i in range(len(DOCUMENTS))])
            found.append(index.search("how to sort lists", mode="sparse", explain=True))
    assert plain(found[0]) == plain(found[1])
    assert found[1][0].explanation is not None
    assert found[1][0].explanation.terms


def test_ingestion_with_chunks(remote: RemoteEmbedder, gte: Embedder) -> None:
    rows = [{"id": str(i), "text": f"{text}. " * 12} for i, text in enumerate(DOCUMENTS)]
    rows.append({"id": "bad", "text": "\ud800"})
    stores = []
    for embedder in (gte, remote):
        store = MemoryStore(StoreConfig.for_embedder(embedder))
        report = ingest(rows, embedder, store, chunk_tokens=40, overlap_tokens=4)
        assert len(report.failures) == 1
        records, _ = store.scroll(limit=1000, with_vectors=True)
        stores.append({record.id: record for record in records})
    assert len(stores[0]) > len(DOCUMENTS)
    assert stores[0].keys() == stores[1].keys()
    for id, record in stores[0].items():
        assert stores[1][id].text == record.text
        np.testing.assert_array_equal(stores[1][id].dense, record.dense)


async def test_concurrent_langchain_queries_share_forward_passes(connect: Connect, quick: Embedder, gate: Gate) -> None:
    far = langchain_twinvec.TwinVecEmbeddings(embedder=connect(quick))
    before = quick.stats()["forwards"]
    first = asyncio.ensure_future(far.aembed_query("the very first question"))
    assert await asyncio.to_thread(gate.entered.wait, 60)
    rest = [asyncio.ensure_future(far.aembed_query(f"a later question {i}")) for i in range(63)]
    while quick.stats()["queued"] < 63:
        await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, *rest)
    assert quick.stats()["forwards"] - before <= 3

"""Our classes inside of other people's: caches, stores, retrievers, chains."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.retrievers import EnsembleRetriever, MultiQueryRetriever
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_.gate import Gate
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from support import TEXTS
from twinvec import TruncationWarning

DOCUMENTS = [
    Document(id=f"{verb}-{what}", page_content=f"{verb} a {what}", metadata={"source": f"{verb}.md"})
    for verb in ("sort", "find", "delete", "open")
    for what in ("list", "file", "table")
]


@pytest.fixture
def store(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    return TwinVecVectorStore.from_documents(DOCUMENTS, gte)


def ids_of(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_huggingface_embeddings_give_the_same_document_vectors(bert_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(model_name=bert_folder)
    ours = TwinVecEmbeddings(model=bert_folder, dtype="float32")
    texts = [text for text in TEXTS if "\n" not in text]
    with pytest.warns(TruncationWarning, match="1 of 12 texts were cut"):  # they cut it too, and say nothing
        np.testing.assert_allclose(ours.embed_documents(texts), theirs.embed_documents(texts), atol=1e-5)
    np.testing.assert_allclose(ours.embed_query(texts[1]), theirs.embed_query(texts[1]), atol=1e-5)
    ours.embedder.close()


def test_cache_backed_embeddings(giga: TwinVecEmbeddings) -> None:
    documents, queries = InMemoryByteStore(), InMemoryByteStore()
    cached = CacheBackedEmbeddings.from_bytes_store(
        giga, documents, namespace=giga.embedder.spec.fingerprint, key_encoder="sha256", query_embedding_cache=queries
    )
    texts = ["kept 1", "kept 2", "kept 1"]
    for _ in range(2):
        np.testing.assert_allclose(cached.embed_documents(texts), giga.embed_documents(texts), atol=1e-5)
        np.testing.assert_allclose(cached.embed_query("kept 1"), giga.embed_query("kept 1"), atol=1e-5)
        np.testing.assert_allclose(asyncio.run(cached.aembed_query("kept 1")), giga.embed_query("kept 1"), atol=1e-5)
    assert (len(documents.store), len(queries.store)) == (2, 1)


def test_in_memory_vector_store(gte: TwinVecEmbeddings, store: TwinVecVectorStore) -> None:
    theirs = InMemoryVectorStore.from_documents(DOCUMENTS, gte)
    for query in ("sort a list", "find something"):
        ours = store.similarity_search_with_score(query, k=12, mode="dense")
        found = theirs.similarity_search_with_score(query, k=12)
        assert ids_of([d for d, _ in ours]) == ids_of([d for d, _ in found])
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in found], atol=1e-5)
        diverse = store.max_marginal_relevance_search(query, k=4, fetch_k=12, lambda_mult=0.3, mode="dense")
        expected = theirs.max_marginal_relevance_search(query, k=4, fetch_k=12, lambda_mult=0.3)
        assert ids_of(diverse) == ids_of(expected)


def test_ensemble_retriever_is_our_rank_fusion(store: TwinVecVectorStore) -> None:
    halves: list[Any] = [store.as_retriever(k=12, mode=mode) for mode in ("dense", "sparse")]
    ensemble = EnsembleRetriever(retrievers=halves, weights=[0.5, 0.5], id_key=None, c=60)
    for query in ("sort a list", "open a table"):
        found = ensemble.invoke(query)
        assert set(ids_of(found)) == set(ids_of(store.similarity_search(query, k=12, fusion="rrf")))
        assert found[0].id == store.similarity_search(query, k=1, fusion="rrf")[0].id
    assert ids_of(asyncio.run(ensemble.ainvoke("sort a list"))) == ids_of(ensemble.invoke("sort a list"))


def test_multi_query_retriever(store: TwinVecVectorStore) -> None:
    model = FakeListChatModel(responses=["sort a list\nopen a table"])
    retriever = MultiQueryRetriever.from_llm(retriever=store.as_retriever(k=1, mode="dense"), llm=model)
    assert set(ids_of(retriever.invoke("anything"))) == {"sort-list", "open-table"}
    assert set(ids_of(asyncio.run(retriever.ainvoke("anything")))) == {"sort-list", "open-table"}


def rag(store: TwinVecVectorStore) -> Any:
    """Documents and a streamed answer out of a question."""
    prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    model = GenericFakeChatModel(messages=iter([AIMessage("Use sorted of course")] * 9))

    def context(given: dict[str, Any]) -> str:
        return "\n".join(document.page_content for document in given["documents"])

    answer = RunnablePassthrough.assign(context=context) | prompt | model | StrOutputParser()
    found = RunnableParallel(documents=store.as_retriever(k=2, fusion="rrf"), question=RunnablePassthrough())
    return found.assign(answer=answer)


def test_a_chain_streams_its_answer_and_names_its_sources(store: TwinVecVectorStore) -> None:
    chunks = list(rag(store).stream("sort a list"))
    words = [chunk["answer"] for chunk in chunks if "answer" in chunk]
    assert len(words) > 3
    assert "".join(words) == "Use sorted of course"
    (documents,) = [chunk["documents"] for chunk in chunks if "documents" in chunk]
    assert documents == store.similarity_search("sort a list", 2, fusion="rrf")
    assert all(document.metadata["source"] for document in documents)

    async def answers() -> Any:
        return [chunk async for chunk in rag(store).astream("sort a list")]

    assert "".join(chunk.get("answer", "") for chunk in asyncio.run(answers())) == "Use sorted of course"


def test_a_chain_is_batched_in_one_pass(store: TwinVecVectorStore, gate: Gate) -> None:
    gate.open.set()
    answers = rag(store).batch([f"batched question {i}" for i in range(3)])
    assert [answer["answer"] for answer in answers] == ["Use sorted of course"] * 3
    assert sum(gate.batches) == 3

"""What HuggingFaceEmbeddings, langchain-qdrant and CacheBackedEmbeddings do wrong, seen, and right with our classes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.stores import InMemoryByteStore
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector

from langchain_.gate import Gate
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from support import dense_of

CODE = "def f(x):\n    return x\n"


@pytest.fixture
def theirs(e5_folder: str) -> HuggingFaceEmbeddings:
    return HuggingFaceEmbeddings(model_name=e5_folder)


@pytest.fixture
def ours(e5_folder: str) -> Any:
    made = TwinVecEmbeddings(model=e5_folder, dtype="float32")
    yield made
    made.embedder.close()


def raw(embeddings: TwinVecEmbeddings, text: str) -> list[float]:
    """The vector of exactly this text."""
    row: list[float] = dense_of(embeddings.embedder.embed_documents([text], prompt="", sparse=False))[0].tolist()
    return row


def close(a: Any, b: Any) -> bool:
    return bool(np.allclose(a, b, atol=1e-5))


def test_the_models_query_prompt_is_applied(theirs: HuggingFaceEmbeddings, ours: TwinVecEmbeddings) -> None:
    assert close(theirs.embed_query("a b"), raw(ours, "a b"))
    assert close(theirs.embed_query("a b"), theirs.embed_documents(["a b"])[0])
    assert close(ours.embed_query("a b"), raw(ours, "query: a b"))
    assert close(ours.embed_documents(["a b"])[0], raw(ours, "passage: a b"))


def test_line_breaks_reach_the_model(e5_folder: str, theirs: HuggingFaceEmbeddings) -> None:
    plain = TwinVecEmbeddings(model=e5_folder, dtype="float32", prompts={"query": "", "document": ""})
    for text in (CODE, "Instruct: find\nQuery: a b"):
        spaces = text.replace("\n", " ")
        assert theirs.embed_documents([text]) == theirs.embed_documents([spaces])
        assert close(plain.embed_documents([text])[0], raw(plain, text))
    # the tokenizers of XLM-R read a line break as a space, most others do not
    plain.embedder.close()


def test_line_breaks_matter(giga: TwinVecEmbeddings) -> None:
    assert not close(giga.embed_documents([CODE]), giga.embed_documents([CODE.replace("\n", " ")]))
    assert close(giga.embed_documents([CODE])[0], raw(giga, CODE))
    asked = giga.with_task("Find code")
    assert close(asked.embed_query("a\nb"), raw(giga, "Instruct: Find code\nQuery: a\nb"))


def test_no_option_is_dropped_with_several_replicas(e5_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = HuggingFaceEmbeddings(model_name=e5_folder, multi_process=True, encode_kwargs={"prompt": "passage: "})
    calls: list[Any] = []

    def encode(texts: list[str], pool: object, **options: Any) -> Any:
        calls.append(options)
        return np.zeros((len(texts), 2))

    monkeypatch.setattr(theirs._client, "start_multi_process_pool", lambda: calls.append("a new pool"))
    monkeypatch.setattr(theirs._client, "encode_multi_process", encode)
    monkeypatch.setattr(type(theirs._client), "stop_multi_process_pool", lambda pool: None)
    theirs.embed_documents(["a b"])
    theirs.embed_documents(["a b"])
    assert calls == ["a new pool", {}, "a new pool", {}]

    made = TwinVecEmbeddings(model=e5_folder, dtype="float32", device="cpu,cpu")
    assert close(made.embed_documents(["a b"])[0], raw(made, "passage: a b"))
    made.embedder.close()


def test_queries_and_documents_do_not_collide_in_a_cache(
    e5_folder: str, theirs: HuggingFaceEmbeddings, tmp_path: Any
) -> None:
    theirs.query_encode_kwargs = {"prompt_name": "query"}
    cached = CacheBackedEmbeddings.from_bytes_store(
        theirs, InMemoryByteStore(), namespace="e5", key_encoder="sha256", query_embedding_cache=True
    )
    document = cached.embed_documents(["a b"])[0]
    assert cached.embed_query("a b") == document
    assert not close(theirs.embed_query("a b"), document)

    for _ in range(2):  # the second time, from the folder
        ours = TwinVecEmbeddings(model=e5_folder, dtype="float32", cache=tmp_path / "cache")
        assert close(ours.embed_documents(["a b"])[0], raw(ours, "passage: a b"))
        assert close(ours.embed_query("a b"), raw(ours, "query: a b"))
        ours.embedder.close()


def test_concurrent_queries_share_passes(
    theirs: HuggingFaceEmbeddings, gte: TwinVecEmbeddings, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = theirs._client.encode

    def counted(texts: list[str], **options: Any) -> Any:
        calls.append(len(texts))
        return encode(texts, **options)

    monkeypatch.setattr(theirs._client, "encode", counted)
    queries = [f"concurrent query {i}" for i in range(64)]

    async def of(embeddings: Any) -> tuple[list[list[float]], Any]:
        work = [asyncio.create_task(embeddings.aembed_query(query)) for query in queries]
        if embeddings is gte:
            await asyncio.sleep(0)
            while gte.embedder.stats()["queued"] + sum(gate.batches) < len(queries):
                await asyncio.sleep(0)
            gate.open.set()
        rows = list(await asyncio.gather(*work))
        return rows, asyncio.get_running_loop()._default_executor  # type: ignore[attr-defined]

    _, their_threads = asyncio.run(of(theirs))
    assert calls == [1] * 64
    assert their_threads is not None
    rows, our_threads = asyncio.run(of(gte))
    assert len(gate.batches) <= 3
    assert sum(gate.batches) == 64
    assert our_threads is None  # no thread waits for a pass
    assert close(rows[7], gte.embed_query(queries[7]))


class CountedSparse(SparseEmbeddings):
    """A second model, as langchain-qdrant wants it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        self.texts += texts
        return [SparseVector(indices=[1], values=[1.0]) for _ in texts]

    def embed_query(self, text: str) -> SparseVector:
        return self.embed_documents([text])[0]


def test_hybrid_is_one_pass_per_text(
    theirs: HuggingFaceEmbeddings, gte: TwinVecEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"hybrid {i}" for i in range(10)]
    sparse, dense = CountedSparse(), list[str]()
    encode = theirs._client.encode

    def noted(texts: list[str], **options: Any) -> Any:
        dense.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(theirs._client, "encode", noted)
    store = QdrantVectorStore.from_texts(
        texts, theirs, sparse_embedding=sparse, location=":memory:", retrieval_mode=RetrievalMode.HYBRID
    )
    store.similarity_search("a query")
    assert dense == ["dummy_text", *texts, "a query"]
    assert sparse.texts == [*texts, "a query"]  # every text through two models

    before = gte.embedder.stats()["texts"]
    ours = TwinVecVectorStore.from_texts(texts, gte)
    ours.similarity_search("a query")
    assert gte.embedder.stats()["texts"] - before == len(texts) + 1


def test_hybrid_search_looks_deeper_than_k(gte: TwinVecEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"deep {i}" for i in range(20)]
    theirs = QdrantVectorStore.from_texts(
        texts, gte, sparse_embedding=gte.sparse(), location=":memory:", retrieval_mode=RetrievalMode.HYBRID
    )
    asked: list[int] = []
    query_points = theirs.client.query_points

    def noted(**options: Any) -> Any:
        asked.extend(branch.limit for branch in options["prefetch"])
        return query_points(**options)

    monkeypatch.setattr(theirs.client, "query_points", noted)
    theirs.similarity_search("deep 3", k=4)
    assert asked == [4, 4]

    ours = TwinVecVectorStore.from_texts(texts, gte)
    limits: list[int] = []
    search = ours.index.store.search

    def watched(queries: Any, *, limit: int, **options: Any) -> Any:
        limits.append(limit)
        return search(queries, limit=limit, **options)

    monkeypatch.setattr(ours.index.store, "search", watched)
    ours.similarity_search("deep 3", k=4)
    assert limits == [100]


def test_every_async_method_is_our_own() -> None:
    names = [
        "aadd_texts", "adelete", "aget_by_ids", "asimilarity_search", "asimilarity_search_with_score",
        "asimilarity_search_by_vector", "amax_marginal_relevance_search", "amax_marginal_relevance_search_by_vector",
        "_asimilarity_search_with_relevance_scores", "afrom_texts",
    ]  # fmt: skip

    def owners(cls: type) -> set[str]:
        return {next(base.__module__.split(".")[0] for base in cls.__mro__ if name in vars(base)) for name in names}

    assert owners(QdrantVectorStore) == {"langchain_core"}
    assert owners(TwinVecVectorStore) == {"langchain_twinvec"}


def test_our_store_never_turns_vectors_into_python_floats(
    gte: TwinVecEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = gte.embed_documents([f"row {i}" for i in range(50)])
    lists = sum(sys.getsizeof(row) + sum(map(sys.getsizeof, row)) for row in rows)
    assert lists / np.array(rows, np.float32).nbytes > 7

    def fail(*_: Any) -> Any:
        raise AssertionError("the interface of lists was used")

    for name in ("embed_documents", "embed_query", "aembed_documents", "aembed_query"):
        monkeypatch.setattr(TwinVecEmbeddings, name, fail)
    store = TwinVecVectorStore.from_texts(["array 1", "array 2"], gte)
    asyncio.run(store.aadd_texts(["array 3"]))
    assert len(store.similarity_search("array")) == len(asyncio.run(store.asimilarity_search("array"))) == 3

"""Subclasses are heard wherever LlamaIndex's own classes hear them, on every way from the outside."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery

from llama_index_.samples import by
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from twinvec import Embedder
from twinvec.errors import TwinVecError

DIM = 64
Paths = dict[str, Callable[[Any], Any]]


class Plain(BaseEmbedding):
    """The least that an embedding is: what LlamaIndex's base class makes of its three methods."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return [1.0] * DIM

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0] * DIM


def methods(base: type) -> list[str]:
    """Return what a subclass of this can override."""
    return sorted(
        name
        for name, value in vars(base).items()
        if inspect.isfunction(value) and (name in ("__call__",) or not name.startswith("__"))
        if not any(word in name for word in ("pydantic", "prompt", "model_", "validate", "check_"))
    )


def with_override(kind: Any, name: str, heard: list[str]) -> Any:
    """Return a subclass in which one method says that it was called, and does what it did."""
    original = inspect.getattr_static(kind, name)

    @functools.wraps(original)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append(name)
        return original.__get__(self, type(self))(*args, **kwargs)

    @functools.wraps(original)
    async def achanged(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append(name)
        return await original.__get__(self, type(self))(*args, **kwargs)

    made: Any = achanged if inspect.iscoroutinefunction(original) else changed
    made.__isabstractmethod__ = False
    return type(kind)(f"{kind.__name__}With{name}", (kind,), {name: made, "__module__": __name__})


def hearing(make: Callable[[], Any], paths: Paths, heard: list[str]) -> set[str]:
    """Return the paths on which a method was heard."""
    found = set()
    for path, take in paths.items():
        thing = make()
        heard.clear()
        with contextlib.suppress(NotImplementedError, TwinVecError):  # heard it may have been
            take(thing)
        if heard:
            found.add(path)
    return found


def filled(store: BasePydanticVectorStore, embedding: BaseEmbedding) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    documents = [Document(text="a", id_="a"), Document(text="b", id_="b")]
    return VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embedding)


# --- embeddings

EMBEDDING: Paths = {
    "query": lambda e: e.get_query_embedding("a"),
    "aquery": lambda e: asyncio.run(e.aget_query_embedding("a")),
    "agg": lambda e: e.get_agg_embedding_from_queries(["a", "b"]),
    "aagg": lambda e: asyncio.run(e.aget_agg_embedding_from_queries(["a", "b"])),
    "text": lambda e: e.get_text_embedding("a"),
    "atext": lambda e: asyncio.run(e.aget_text_embedding("a")),
    "batch": lambda e: e.get_text_embedding_batch(["a", "b"]),
    "abatch": lambda e: asyncio.run(e.aget_text_embedding_batch(["a", "b"])),
    "nodes": lambda e: e([TextNode(text="a")]),
    "anodes": lambda e: asyncio.run(e.acall([TextNode(text="a")])),
    "pipeline": lambda e: IngestionPipeline(transformations=[e], disable_cache=True).run(nodes=[TextNode(text="a")]),
    "similarity": lambda e: e.similarity([1.0], [1.0]),
}
INDEXED: Paths = {
    "from_documents": lambda i: None,
    "insert": lambda i: i.insert(Document(text="c")),
    "ainsert": lambda i: asyncio.run(i.ainsert(Document(text="c"))),
    "insert_nodes": lambda i: i.insert_nodes([TextNode(text="c")]),
    "retrieve": lambda i: i.as_retriever().retrieve("a"),
    "aretrieve": lambda i: asyncio.run(i.as_retriever().aretrieve("a")),
    "engine": lambda i: i.as_query_engine().query("a"),
    "aengine": lambda i: asyncio.run(i.as_query_engine().aquery("a")),
    "chat": lambda i: i.as_chat_engine(chat_mode="context").chat("a"),
    "delete_ref_doc": lambda i: i.delete_ref_doc("a"),
    "adelete_ref_doc": lambda i: asyncio.run(i.adelete_ref_doc("a")),
    "delete_nodes": lambda i: i.delete_nodes(["x"]),
    "adelete_nodes": lambda i: asyncio.run(i.adelete_nodes(["x"])),
    "update": lambda i: i.update_ref_doc(Document(text="c", id_="a")),
    "refresh": lambda i: i.refresh_ref_docs([Document(text="c", id_="a")]),
}
OURS: Paths = {
    "hybrid retrieve": lambda i: HybridRetriever(i).retrieve("a"),
    "hybrid aretrieve": lambda i: asyncio.run(HybridRetriever(i).aretrieve("a")),
    "hybrid dense": lambda i: HybridRetriever(i, mode="dense").retrieve("a"),
    "hybrid engine": lambda i: RetrieverQueryEngine.from_args(HybridRetriever(i)).query("a"),
    "hybrid aengine": lambda i: asyncio.run(RetrieverQueryEngine.from_args(HybridRetriever(i)).aquery("a")),
    "hybrid mode": lambda i: i.as_retriever(vector_store_query_mode="hybrid").retrieve("a"),
}


@pytest.mark.parametrize("name", methods(BaseEmbedding))
def test_an_embedding_hears_what_the_base_class_hears(name: str, gte: Embedder) -> None:
    heard: list[str] = []
    plain, ours = with_override(Plain, name, heard), with_override(TwinVecEmbedding, name, heard)
    expected = hearing(plain, EMBEDDING, heard)
    assert expected <= hearing(lambda: ours(embedder=gte), EMBEDDING, heard)
    if ("embedding" in name or "call" in name) and "cached" not in name:
        assert expected, "a walk that hears nothing shows nothing"


@pytest.mark.parametrize("name", [name for name in methods(BaseEmbedding) if "embedding" in name])
def test_an_embedding_is_heard_by_index_and_store(name: str, gte: Embedder) -> None:
    heard: list[str] = []
    plain, ours = with_override(Plain, name, heard), with_override(TwinVecEmbedding, name, heard)

    def made() -> VectorStoreIndex:
        embedding = ours(embedder=gte)
        return filled(TwinVecVectorStore(embedding), embedding)

    expected = hearing(lambda: filled(SimpleVectorStore(), plain()), INDEXED, heard)
    found = hearing(made, INDEXED | OURS, heard)
    assert expected <= found
    sync = {"retrieve", "engine"} <= expected
    if sync or {"aretrieve", "aengine"} <= expected:
        assert found >= ({"hybrid retrieve", "hybrid engine", "hybrid dense", "hybrid mode"} if sync else set())
        assert found >= {"hybrid aretrieve", "hybrid aengine"} or sync


# --- stores

STORED: Paths = {
    "add": lambda s: s.add([TextNode(text="a", embedding=[1.0] * DIM)]),
    "async_add": lambda s: asyncio.run(s.async_add([TextNode(text="a", embedding=[1.0] * DIM)])),
    "delete": lambda s: s.delete("a"),
    "adelete": lambda s: asyncio.run(s.adelete("a")),
    "delete_nodes": lambda s: s.delete_nodes(["a"]),
    "adelete_nodes": lambda s: asyncio.run(s.adelete_nodes(["a"])),
    "clear": lambda s: s.clear(),
    "aclear": lambda s: asyncio.run(s.aclear()),
    "get_nodes": lambda s: s.get_nodes(filters=by("n", 1)),
    "aget_nodes": lambda s: asyncio.run(s.aget_nodes(filters=by("n", 1))),
    "query": lambda s: s.query(VectorStoreQuery(query_embedding=[1.0] * DIM)),
    "aquery": lambda s: asyncio.run(s.aquery(VectorStoreQuery(query_embedding=[1.0] * DIM))),
    "persist": lambda s: s.persist("default__vector_store.json"),
}


class Persistless(SimpleVectorStore):
    """Writes no files."""

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Do nothing."""

    def get_nodes(self, node_ids: Any = None, filters: Any = None) -> Any:
        """Return nothing, where that class refuses."""
        return []


@pytest.mark.parametrize("name", methods(BasePydanticVectorStore))
def test_a_store_is_heard_where_llamaindexs_own_is(name: str, embedding: TwinVecEmbedding) -> None:
    heard: list[str] = []
    plain, ours = with_override(Persistless, name, heard), with_override(TwinVecVectorStore, name, heard)
    expected = hearing(plain, STORED, heard)
    assert expected <= hearing(lambda: ours(embedding), STORED, heard)
    expected = hearing(lambda: filled(plain(), Plain()), INDEXED, heard)
    found = hearing(lambda: filled(ours(embedding), embedding), INDEXED | OURS, heard)
    assert expected <= found
    if name == "query":
        assert found >= set(OURS), "a query that a subclass has changed is asked on every way"
    if name == "aquery":
        assert found >= {path for path in OURS if path.startswith("hybrid a")}


# --- retrievers and postprocessors

RETRIEVED: Paths = {
    "retrieve": lambda r: r.retrieve("a"),
    "aretrieve": lambda r: asyncio.run(r.aretrieve("a")),
    "bundle": lambda r: r.retrieve(QueryBundle("a", custom_embedding_strs=["b"])),
    "engine": lambda r: RetrieverQueryEngine.from_args(r).query("a"),
    "aengine": lambda r: asyncio.run(RetrieverQueryEngine.from_args(r).aquery("a")),
    "engine retrieve": lambda r: RetrieverQueryEngine.from_args(r).retrieve(QueryBundle("a")),
    "engine aretrieve": lambda r: asyncio.run(RetrieverQueryEngine.from_args(r).aretrieve(QueryBundle("a"))),
    "fusion": lambda r: QueryFusionRetriever([r], num_queries=1, use_async=False).retrieve("a"),
    "afusion": lambda r: QueryFusionRetriever([r], num_queries=1).retrieve("a"),
    "tool": lambda r: RetrieverTool.from_defaults(r).call("a"),
    "atool": lambda r: asyncio.run(RetrieverTool.from_defaults(r).acall("a")),
}


@pytest.mark.parametrize("name", methods(BaseRetriever))
def test_a_retriever_is_heard_where_llamaindexs_own_is(name: str, store: TwinVecVectorStore) -> None:
    heard: list[str] = []
    index = filled(store, store.embedding)
    plain, ours = with_override(VectorIndexRetriever, name, heard), with_override(HybridRetriever, name, heard)
    expected = hearing(lambda: plain(index), RETRIEVED, heard)
    found = hearing(lambda: ours(index), RETRIEVED, heard)
    assert expected <= found
    if name == "_retrieve":
        assert found == set(RETRIEVED), "alone, it is what async ways take, too"
    if name in ("retrieve", "aretrieve", "_retrieve", "_aretrieve"):
        assert expected


@pytest.mark.parametrize("name", methods(BaseNodePostprocessor))
def test_postprocessors_are_heard_behind_our_retriever(name: str, store: TwinVecVectorStore) -> None:
    heard: list[str] = []
    index = filled(store, store.embedding)
    made = with_override(LongContextReorder, name, heard)
    paths: Paths = {
        "query": lambda r: RetrieverQueryEngine.from_args(r, node_postprocessors=[made()]).query("a"),
        "aquery": lambda r: asyncio.run(RetrieverQueryEngine.from_args(r, node_postprocessors=[made()]).aquery("a")),
        "alone": lambda r: made().postprocess_nodes(r.retrieve("a")),
    }
    expected = hearing(lambda: VectorIndexRetriever(index), paths, heard)
    assert expected <= hearing(lambda: HybridRetriever(index), paths, heard)


# --- what it is for


class OfTenant(TwinVecVectorStore):
    """Shows one tenant's nodes."""

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> Any:
        query.filters = by("tenant", "a")
        return super().query(query, **kwargs)


def test_a_store_that_filters_by_tenant_is_never_gone_around(embedding: TwinVecEmbedding) -> None:
    made: Any = OfTenant
    with made(embedding) as store:
        store.add([TextNode(text=f"a secret of {t}", metadata={"tenant": t}) for t in "abab"])
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        for path in ("retrieve", "aretrieve"):
            for retriever in (HybridRetriever(store), HybridRetriever(index), index.as_retriever()):
                assert {n.node.metadata["tenant"] for n in RETRIEVED[path](retriever)} == {"a"}
        for path in ("hybrid engine", "hybrid aengine"):
            assert {n.node.metadata["tenant"] for n in OURS[path](index).source_nodes} == {"a"}


def test_a_retriever_that_filters_is_heard_in_a_fusion(store: TwinVecVectorStore) -> None:
    class First(HybridRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return super()._retrieve(query_bundle)[:1]

    filled(store, store.embedding)
    for path in ("retrieve", "aretrieve", "fusion", "afusion", "engine retrieve", "engine aretrieve"):
        assert len(RETRIEVED[path](First(store))) == 1, path

"""Subclasses are heard wherever LangChain's own classes hear them: its in-memory store and its retriever say where."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from langchain_twinvec import HybridRetriever, TwinVecEmbeddings, TwinVecVectorStore

THRESHOLD = {"search_type": "similarity_score_threshold", "search_kwargs": {"score_threshold": 0.0}}


def methods(*bases: type) -> list[str]:
    """Return what a subclass of these can override."""
    names = {
        name
        for base in bases
        for name, value in vars(base).items()
        if inspect.isfunction(value) or isinstance(value, classmethod)
        if not name.startswith("__") and "pydantic" not in name and not name.startswith("lc_")
    }
    return sorted(names - {"validate_search_type", "get_lc_namespace"})


def with_override(kind: Any, name: str, heard: list[str]) -> Any:
    """Return a subclass in which one method says that it was called, and does what it did."""
    original = inspect.getattr_static(kind, name)
    function: Any = original.__func__ if isinstance(original, classmethod | staticmethod) else original

    @functools.wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:
        heard.append(name)
        return function(*args, **kwargs)

    changed.__isabstractmethod__ = False  # type: ignore[attr-defined]
    value: Any = classmethod(changed) if isinstance(original, classmethod) else changed
    value = staticmethod(changed) if isinstance(original, staticmethod) else value
    return type(kind)(f"{kind.__name__}With{name}", (kind,), {name: value, "__module__": __name__})


def nothing(documents: list[Document]) -> int:
    return len(documents)


RETRIEVING: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda r: r.invoke("a"),
    "batch": lambda r: r.batch(["a", "b"]),
    "batch with errors": lambda r: r.batch(["a", "b"], return_exceptions=True),
    "as completed": lambda r: list(r.batch_as_completed(["a", "b"])),
    "stream": lambda r: list(r.stream("a")),
    "map": lambda r: r.map().invoke(["a", "b"]),
    "bind": lambda r: r.bind().batch(["a", "b"]),
    "retry": lambda r: r.with_retry().batch(["a", "b"]),
    "fallbacks": lambda r: r.with_fallbacks([r]).batch(["a", "b"]),
    "config": lambda r: r.with_config(tags=["x"]).batch(["a", "b"]),
    "sequence": lambda r: (r | RunnableLambda(nothing)).batch(["a", "b"]),
    "parallel": lambda r: (RunnableLambda(str) | {"x": r}).batch(["a", "b"]),
    "ainvoke": lambda r: asyncio.run(r.ainvoke("a")),
    "abatch": lambda r: asyncio.run(r.abatch(["a", "b"])),
    "amap": lambda r: asyncio.run(r.map().ainvoke(["a", "b"])),
    "asequence": lambda r: asyncio.run((r | RunnableLambda(nothing)).abatch(["a", "b"])),
    "aretry": lambda r: asyncio.run(r.with_retry().abatch(["a", "b"])),
}


def retrieving(name: str, how: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda store: RETRIEVING[name](store.as_retriever(**how))


SEARCHING: dict[str, Callable[[Any], Any]] = {
    **{f"retriever {name}": retrieving(name, {}) for name in RETRIEVING},
    **{
        f"{kind} retriever {name}": retrieving(name, how)
        for kind, how in (("mmr", {"search_type": "mmr"}), ("threshold", THRESHOLD))
        for name in ("invoke", "batch", "ainvoke", "abatch")
    },
    "search": lambda s: s.search("a", "similarity"),
    "search mmr": lambda s: s.search("a", "mmr"),
    "search threshold": lambda s: s.search("a", "similarity_score_threshold"),
    "asearch": lambda s: asyncio.run(s.asearch("a", "similarity")),
    "asearch mmr": lambda s: asyncio.run(s.asearch("a", "mmr")),
    "asearch threshold": lambda s: asyncio.run(s.asearch("a", "similarity_score_threshold")),
    "similarity_search": lambda s: s.similarity_search("a"),
    "with score": lambda s: s.similarity_search_with_score("a"),
    "with relevance": lambda s: s.similarity_search_with_relevance_scores("a"),
    "mmr": lambda s: s.max_marginal_relevance_search("a"),
    "asimilarity_search": lambda s: asyncio.run(s.asimilarity_search("a")),
    "awith score": lambda s: asyncio.run(s.asimilarity_search_with_score("a")),
    "awith relevance": lambda s: asyncio.run(s.asimilarity_search_with_relevance_scores("a")),
    "ammr": lambda s: asyncio.run(s.amax_marginal_relevance_search("a")),
    "by vector": lambda s: s.similarity_search_by_vector([1.0] * 64),
    "aby vector": lambda s: asyncio.run(s.asimilarity_search_by_vector([1.0] * 64)),
    "ammr by vector": lambda s: asyncio.run(s.amax_marginal_relevance_search_by_vector([1.0] * 64)),
}
WRITING: dict[str, Callable[[Any], Any]] = {
    "add_texts": lambda s: s.add_texts(["new"]),
    "add_documents": lambda s: s.add_documents([Document(page_content="new")]),
    "aadd_texts": lambda s: asyncio.run(s.aadd_texts(["new"])),
    "aadd_documents": lambda s: asyncio.run(s.aadd_documents([Document(page_content="new")])),
    "retriever add": lambda s: s.as_retriever().add_documents([Document(page_content="new")]),
    "aretriever add": lambda s: asyncio.run(s.as_retriever().aadd_documents([Document(page_content="new")])),
    "get": lambda s: s.get_by_ids(["x"]),
    "aget": lambda s: asyncio.run(s.aget_by_ids(["x"])),
    "delete": lambda s: s.delete(["x"]),
    "adelete": lambda s: asyncio.run(s.adelete(["x"])),
    "from_texts": lambda s: type(s).from_texts(["a"], s.embeddings),
    "from_documents": lambda s: type(s).from_documents([Document(page_content="a")], s.embeddings),
    "afrom_texts": lambda s: asyncio.run(type(s).afrom_texts(["a"], s.embeddings)),
    "afrom_documents": lambda s: asyncio.run(type(s).afrom_documents([Document(page_content="a")], s.embeddings)),
}


def hearing(make: Callable[[], Any], paths: dict[str, Callable[[Any], Any]], heard: list[str]) -> set[str]:
    """Return the paths on which a method was heard."""
    found = set()
    for name, path in paths.items():
        thing = make()
        heard.clear()
        try:
            path(thing)
        except NotImplementedError:
            continue
        if heard:
            found.add(name)
    return found


@pytest.fixture(scope="module")
def fake() -> Embeddings:
    return DeterministicFakeEmbedding(size=64)


@pytest.mark.filterwarnings("ignore:Relevance scores")
@pytest.mark.parametrize("name", methods(BaseRetriever, VectorStoreRetriever, Runnable))
def test_a_retriever_hears_what_langchains_own_hears(name: str, gte: TwinVecEmbeddings, fake: Embeddings) -> None:
    heard: list[str] = []
    reference = with_override(VectorStoreRetriever, name, heard)
    plain = InMemoryVectorStore.from_texts(["a", "b"], fake)
    expected = hearing(lambda: reference(vectorstore=plain), RETRIEVING, heard)
    ours = with_override(HybridRetriever, name, heard)
    store = TwinVecVectorStore.from_texts(["a", "b"], gte)
    assert expected <= hearing(lambda: ours(vectorstore=store), RETRIEVING, heard)
    if name in ("invoke", "batch", "abatch", "_get_relevant_documents", "_aget_relevant_documents", "ainvoke"):
        assert expected, "a walk that hears nothing shows nothing"


@pytest.mark.filterwarnings("ignore:Relevance scores")
@pytest.mark.parametrize("name", methods(VectorStore))
def test_a_store_hears_what_langchains_own_hears(name: str, gte: TwinVecEmbeddings, fake: Embeddings) -> None:
    heard: list[str] = []
    reference, ours = (with_override(kind, name, heard) for kind in (InMemoryVectorStore, TwinVecVectorStore))
    made, plain = ours.from_texts(["a", "b"], gte), reference.from_texts(["a", "b"], fake)
    paths = {**SEARCHING, **WRITING}
    assert hearing(lambda: plain, paths, heard) <= hearing(lambda: made, paths, heard)


@pytest.mark.parametrize("name", ["similarity_search", "similarity_search_with_score", "max_marginal_relevance_search"])
def test_a_search_of_a_store_is_heard_on_every_way_to_it(name: str, gte: TwinVecEmbeddings) -> None:
    heard: list[str] = []
    made = with_override(TwinVecVectorStore, name, heard).from_texts(["a", "b"], gte)
    kind = "mmr retriever" if name.startswith("max") else "retriever"
    paths = {path: call for path, call in SEARCHING.items() if path.startswith(f"{kind} ")}
    assert hearing(lambda: made, paths, heard) == set(paths)


@pytest.mark.filterwarnings("ignore:Relevance scores")
@pytest.mark.parametrize("name", methods(Embeddings))
def test_embeddings_are_heard_by_the_store(name: str, gte: TwinVecEmbeddings) -> None:
    heard: list[str] = []
    reference = with_override(DeterministicFakeEmbedding, name, heard)
    ours = with_override(TwinVecEmbeddings, name, heard)
    paths = {**SEARCHING, **WRITING}
    expected = hearing(lambda: InMemoryVectorStore.from_texts(["a", "b"], reference(size=64)), paths, heard)
    found = hearing(lambda: TwinVecVectorStore.from_texts(["a", "b"], ours(embedder=gte.embedder)), paths, heard)
    assert expected
    assert expected <= found


def test_the_tenant_is_never_forgotten(gte: TwinVecEmbeddings) -> None:
    class OfTenant(HybridRetriever):
        tenant: str

        def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
            chosen = {"tenant": self.tenant}
            return super()._get_relevant_documents(query, run_manager=run_manager, **{**kwargs, "filter": chosen})

    store = TwinVecVectorStore.from_texts(["a secret", "b secret"], gte, [{"tenant": "a"}, {"tenant": "b"}])
    retriever = OfTenant(vectorstore=store, tenant="a")
    for path, call in RETRIEVING.items():
        if path in ("invoke", "ainvoke", "stream"):
            found = call(retriever)
            documents = found[0] if path == "stream" else found
            assert [d.metadata["tenant"] for d in documents] == ["a"], path
    for documents in (*retriever.batch(["x", "y"]), *asyncio.run(retriever.abatch(["x", "y"]))):
        assert [d.metadata["tenant"] for d in documents] == ["a"]


def test_an_async_override_may_stand_alone_or_beside_the_blocking_one(gte: TwinVecEmbeddings) -> None:
    class Both(TwinVecEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            return [1.0]

        async def aembed_query(self, text: str) -> list[float]:
            return [2.0]

    class Alone(TwinVecEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            return [3.0]

    class Further(Alone):
        async def aembed_query(self, text: str) -> list[float]:
            return await super().aembed_query(text)

    assert asyncio.run(Both(embedder=gte.embedder).aembed_query("a")) == [2.0]
    assert asyncio.run(Alone(embedder=gte.embedder).aembed_query("a")) == [3.0]
    assert asyncio.run(Further(embedder=gte.embedder).aembed_query("a")) == [3.0]

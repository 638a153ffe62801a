"""Tenants, ingestion, listing and changing metadata; what a search may be asked besides LangChain's own arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from langchain_twinvec import TwinVecEmbeddings, TwinVecTextSplitter, TwinVecVectorStore
from twinvec.errors import ConfigurationError, InvalidRecordError
from twinvec_stores import HybridIndex

TEXTS = ["secret of a", "another of a", "secret of b", "another of b"]
TENANTS = [{"tenant": "a"}, {"tenant": "a"}, {"tenant": "b"}, {"tenant": "b"}]


@pytest.fixture
def shared(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    return TwinVecVectorStore.from_texts(TEXTS, gte, TENANTS, ids=["a1", "a2", "b1", "b2"])


def seen(documents: Any) -> set[str]:
    return {document.id for document in documents}


def test_a_tenant_sees_and_deletes_its_own_only(shared: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    one, row = shared.scoped({"tenant": "a"}), gte.embed_query("secret of b")
    retriever = one.as_retriever(k=4)
    for found in (
        one.similarity_search("secret of b", k=4),
        one.similarity_search("secret of b", k=4, mode="sparse", filter={"$not": {"tenant": "a"}})
        or one.get_by_ids(["a1", "a2"]),
        one.similarity_search_by_vector(row, k=4),
        one.max_marginal_relevance_search("secret of b", k=4),
        one.get_by_ids(["a1", "a2", "b1", "b2"]),
        list(one.list_documents()),
        retriever.invoke("secret of b"),
        retriever.batch(["secret of b"])[0],
        asyncio.run(retriever.abatch(["secret of b"]))[0],
        [document for document, _ in one.similarity_search_with_relevance_scores("secret of b", k=4)],
    ):
        assert seen(found) == {"a1", "a2"}
    assert one.similarity_search("secret", k=4, filter={"tenant": "b"}) == []
    assert one.update_metadata(["a1", "b1"], {"n": 1}) == ["a1"]
    one.delete(["a1", "b1"])
    assert seen(shared.get_by_ids(["a1", "b1"])) == {"b1"}
    one.delete()
    assert seen(shared.list_documents()) == {"b1", "b2"}


def test_what_a_tenant_writes_is_its_own(shared: TwinVecVectorStore) -> None:
    one = shared.scoped({"tenant": "a"})
    one.add_texts(["new"], ids=["new"])
    assert shared.get_by_ids(["new"])[0].metadata == {"tenant": "a"}
    with pytest.raises(InvalidRecordError, match="outside the scope"):
        one.add_texts(["x"], [{"tenant": "b"}])
    with pytest.raises(InvalidRecordError, match="belongs to a record outside"):
        one.add_texts(["stolen"], [{"tenant": "a"}], ids=["b1"])
    with pytest.raises(InvalidRecordError, match="outside the scope"):
        one.update_metadata(["a1"], {"tenant": "b"})
    one.ingest([Document(id="doc", page_content="ingested")])
    assert seen(shared.list_documents({"tenant": "a"})) == {"a1", "a2", "new", "doc"}


def test_a_subclass_stays_one_when_scoped(gte: TwinVecEmbeddings) -> None:
    class Loud(TwinVecVectorStore):
        def similarity_search(self, query: str, *args: Any, **kwargs: Any) -> list[Document]:
            return super().similarity_search(query.upper(), *args, **kwargs)[:1]

    one = Loud.from_texts(TEXTS, gte, TENANTS).scoped({"tenant": "b"})
    assert isinstance(one, Loud)
    (found,) = one.as_retriever().invoke("secret")
    assert found.metadata == {"tenant": "b"}
    with pytest.raises(ConfigurationError, match="needs a filter"):
        one.scoped(None)


class Loader(BaseLoader):
    def __init__(self, *texts: str) -> None:
        self.texts, self.given = texts, 0

    def lazy_load(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts):
            self.given += 1
            yield Document(id=f"doc-{number}", page_content=text, metadata={"number": number})


def test_ingest_reads_a_loader_lazily_and_only_what_has_changed(store: TwinVecVectorStore) -> None:
    report = store.ingest(Loader("first", "second"))
    assert (report.new, report.records) == (2, 2)
    assert store.get_by_ids(["doc-1"])[0] == Document(id="doc-1", page_content="second", metadata={"number": 1})
    report = asyncio.run(store.aingest(Loader("first", "another"), prune=True))
    assert (report.new, report.changed, report.unchanged) == (0, 1, 1)
    report = store.ingest(Loader("first"), prune=True)
    assert (report.unchanged, report.deleted) == (1, 1)


def test_ingest_does_not_go_around_a_subclass(gte: TwinVecEmbeddings) -> None:
    class Own(TwinVecVectorStore):
        def add_texts(self, texts: Any, *args: Any, **kwargs: Any) -> list[str]:
            return super().add_texts([f"own {text}" for text in texts], *args, **kwargs)

    with pytest.raises(ConfigurationError, match="add_texts"):
        Own(gte).ingest(Loader("a"))


def test_groups_and_neighbours(store: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    texts = ["One two three four five six seven eight nine ten eleven twelve." * 2, "one two", "three four"]
    store.ingest(Loader(*texts), chunk_tokens=8)
    chunks = [c for text in texts for c in TwinVecTextSplitter(gte, chunk_size=8).split_text(text)]
    assert len(chunks) > 4
    found = store.similarity_search("one two", k=3, group_by="document")
    assert len({document.metadata["number"] for document in found}) == 3
    assert store.as_retriever(k=3, group_by="document").batch(["one two"])[0] == found
    (wide,) = store.similarity_search("one two three", k=1, expand=100, filter={"number": 0})
    assert wide.page_content == texts[0]
    (narrow,) = store.similarity_search("one two three", k=1, filter={"number": 0})
    assert narrow.page_content in chunks


def test_gates_say_nothing_where_nothing_fits(shared: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    query = gte.embed_query("secret of b")
    cosines = {
        f"{t['tenant']}{i % 2 + 1}": float(np.dot(query, row))
        for i, (t, row) in enumerate(zip(TENANTS, gte.embed_documents(TEXTS), strict=True))
    }
    least = sorted(cosines.values())[1] + 1e-4
    expected = {id for id, cosine in cosines.items() if cosine >= least}
    assert 0 < len(expected) < 4
    assert seen(shared.similarity_search("secret of b", k=4, min_dense=least)) == expected
    assert seen(shared.as_retriever(k=4, min_dense=least).invoke("secret of b")) == expected
    assert seen(shared.similarity_search_by_vector(query, k=4, min_dense=least)) == expected
    assert shared.similarity_search("secret of b", min_sparse=1e6) == []
    assert shared.as_retriever(min_sparse=1e6).batch(["secret of b"]) == [[]]


def test_scores_without_explanations(shared: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    scored = shared.similarity_search_with_score("secret", k=2)
    for found in (
        shared.similarity_search("secret", k=2, scores=True),
        shared.as_retriever(k=2, scores=True).invoke("secret"),
        asyncio.run(shared.as_retriever(k=2).abatch(["secret"], scores=True))[0],
    ):
        assert [d.metadata["_twinvec"] for d in found] == [{"score": score} for _, score in scored]
    assert all("_twinvec" not in document.metadata for document, _ in scored)
    (relevant, relevance), *_ = shared.similarity_search_with_relevance_scores("secret", k=1, scores=True)
    assert relevant.metadata["_twinvec"] == {"score": relevance}
    row = gte.embed_query("secret")
    diverse = shared.max_marginal_relevance_search_with_score_by_vector(row, k=2)
    assert [d for d, _ in diverse] == shared.max_marginal_relevance_search_by_vector(row, k=2)
    assert asyncio.run(shared.amax_marginal_relevance_search_with_score_by_vector(row, k=2)) == diverse
    rows = dict(zip(TEXTS, gte.embed_documents(TEXTS), strict=True))
    for document, score in diverse:
        assert score == pytest.approx(float(np.dot(row, rows[document.page_content])), abs=1e-5)


def test_listing_and_changing(shared: TwinVecVectorStore) -> None:
    assert seen(shared.list_documents({"tenant": "b"})) == {"b1", "b2"}
    assert len(list(shared.list_documents(limit=3))) == 3

    async def listed(**options: Any) -> list[Document]:
        return [document async for document in shared.alist_documents(**options)]

    assert seen(asyncio.run(listed())) == {"a1", "a2", "b1", "b2"}
    assert len(asyncio.run(listed(limit=3))) == 3
    before = shared.similarity_search_with_score("secret", k=4)
    embedded = shared.index.embedder.stats()["texts"]
    assert asyncio.run(shared.aupdate_metadata(["b1", "missing"], {"seen": True, "tenant": "c"})) == ["b1"]
    assert shared.index.embedder.stats()["texts"] == embedded
    assert shared.get_by_ids(["b1"])[0].metadata == {"tenant": "c", "seen": True}
    after = shared.similarity_search_with_score("secret", k=4)
    assert [(d.id, score) for d, score in after] == [(d.id, score) for d, score in before]
    with pytest.raises(InvalidRecordError):
        shared.update_metadata(["b1"], {"bad": object()})


def test_provenance_survives_a_change_of_metadata(store: TwinVecVectorStore) -> None:
    store.ingest(Loader("first"))
    assert isinstance(store.index, HybridIndex)
    store.update_metadata(["doc-0"], {"number": 7})
    (record,) = store.index.store.get(["doc-0"])
    assert record.provenance["document"] == "doc-0"

"""What langchain-qdrant's own test suite expects of its stores, asked of ours.

The facts of that suite: which texts and metadata, which call, which answer. What is different on purpose is in
DIFFERENT, and in docs/langchain.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from langchain_twinvec import TwinVecVectorStore
from twinvec.errors import ConfigurationError, FilterError, TwinVecError

TEXTS = ["foo", "bar", "baz"]
METADATA = [{"page": i, "details": {"page": i + 1, "pages": [i + 2, -1]}} for i in range(3)]
UUIDS = [f"fa38d572-4c31-4579-aedc-1960d79df6d{i}" for i in range(3)]


class Consistent(Embeddings):
    """Nine ones, and the number of the text in the order of their first coming."""

    def __init__(self, dim: int = 10) -> None:
        self.dim, self.known = dim, list[str]()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.known += [text for text in dict.fromkeys(texts) if text not in self.known]
        return [[1.0] * (self.dim - 1) + [float(self.known.index(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture(params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    path = tmp_path / "index" if request.param == "embedded" else None
    with TwinVecVectorStore.from_texts(
        TEXTS, Consistent(), METADATA, ids=list(UUIDS), sparse="bm25", path=path
    ) as made:
        yield made


def texts_of(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_text_finds_itself(store: TwinVecVectorStore, mode: str) -> None:
    assert texts_of(store.similarity_search("foo", k=1, mode=mode)) == ["foo"]
    assert texts_of(asyncio.run(store.asimilarity_search("foo", k=1, mode=mode))) == ["foo"]
    both: dict[str, Any] = {"page": 1, "details.page": 2, "details.pages": {"$in": [3]}}
    found = store.similarity_search("bar" if mode == "sparse" else "foo", k=1, mode=mode, filter=both)
    assert [(each.page_content, each.metadata) for each in found] == [("bar", METADATA[1])]
    retriever = store.as_retriever(search_kwargs={"k": 1, "mode": mode})
    assert "TwinVecVectorStore" in (retriever.tags or [])
    assert texts_of(retriever.invoke("baz")) == ["baz"]


def test_a_vector_finds_its_text_with_a_score(store: TwinVecVectorStore) -> None:
    row = store.embeddings.embed_query("foo")
    assert texts_of(store.similarity_search_by_vector(row, k=1)) == ["foo"]
    [(document, score)] = store.similarity_search_with_score_by_vector(row, k=1)
    assert document.page_content == "foo"
    assert score == pytest.approx(1)


def test_relevance_is_from_0_to_1_and_can_be_demanded(store: TwinVecVectorStore) -> None:
    search = store.similarity_search_with_relevance_scores
    assert [0 <= relevance <= 1 for _, relevance in search("foo", k=3, score_threshold=None)] == [True] * 3
    assert [document.page_content for document, _ in search("foo", k=3, score_threshold=0.99)] == ["foo"]
    assert search("foo", k=3, score_threshold=0.99, filter={"page": 1}) == []
    assert len(search("foo", k=3, score_threshold=0.99, filter={"page": 0})) == 1


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_diversity_alone_takes_what_is_farthest(store: TwinVecVectorStore, mode: str) -> None:
    options: dict[str, Any] = {"k": 2, "fetch_k": 3, "lambda_mult": 0.0, "mode": mode}
    assert texts_of(store.max_marginal_relevance_search("foo", **options)) == ["foo", "baz"]
    assert texts_of(store.max_marginal_relevance_search("foo", **options, filter={"page": 2})) == ["baz"]


def test_the_ids_are_the_callers(store: TwinVecVectorStore) -> None:
    ids: list[Any] = ["fa38d572-4c31-4579-aedc-1960d79df6df", 786, 432145435]
    assert store.add_texts(["abc", "abc", "ghi"], ids=ids) == [str(id) for id in ids]
    assert [document.id for document in store.get_by_ids(ids)] == [str(id) for id in ids]
    made = store.add_texts(["abc", "abc"], [{"a": 1}, {"a": 2}])
    assert len(set(made)) == len(store.get_by_ids(made)) == 2
    assert store.delete(ids=[ids[1]])
    assert [document.id for document in store.get_by_ids(ids)] == [str(ids[0]), str(ids[2])]


async def test_the_same_without_blocking(store: TwinVecVectorStore) -> None:
    documents = [Document(page_content="Hello world"), Document(page_content="Goodbye world")]
    assert await store.aadd_documents(documents, ids=["hello", "bye"]) == ["hello", "bye"]
    assert texts_of(await store.asimilarity_search("Hello world", k=1)) == ["Hello world"]
    assert texts_of(await store.aget_by_ids([UUIDS[2], UUIDS[0]])) == ["baz", "foo"]
    assert await store.aget_by_ids([]) == await store.aget_by_ids(["missing"]) == []
    assert await store.adelete(ids=UUIDS[:2])
    assert {document.id for document in store.list_documents()} == {UUIDS[2], "hello", "bye"}


def test_a_filter_deletes_what_matches_all_of_it(store: TwinVecVectorStore) -> None:
    store.add_texts(["x", "y"], [{"owner": "admin", "type": "image"}, {"owner": "admin", "type": "text"}])
    assert store.delete(filter={"owner": "nobody"})
    assert store.index.store.count() == 5
    assert store.delete(filter={"owner": "admin", "type": "text"})
    assert {*texts_of(list(store.list_documents()))} == {*TEXTS, "x"}


def test_a_folder_goes_on_with_what_is_in_it(tmp_path: Path) -> None:
    def open_(texts: list[str], **options: Any) -> TwinVecVectorStore:
        return TwinVecVectorStore.from_texts(texts, Consistent(**options), path=tmp_path / "index")

    open_(["lorem", "ipsum", "dolor", "sit", "amet"]).close()
    open_(["foo", "bar"]).close()
    with TwinVecVectorStore.from_existing(Consistent(), path=tmp_path / "index") as again:
        again.add_texts(["baz"])
        assert again.index.store.count() == 8
    with pytest.raises(TwinVecError, match="another model"):
        open_(["foo"], dim=5)


DIFFERENT: dict[str, tuple[Callable[[Any], Any], type[Exception] | None, str]] = {
    "delete() is LangChain's: everything": (lambda s: (s.delete(), s.index.store.count())[1] == 0, None, ""),
    "ids and a filter at once": (
        lambda s: s.delete(UUIDS[:1], filter={"page": 2}), ConfigurationError, "either ids or filter="),
    "nothing is added to metadata": (lambda s: s.similarity_search("foo", k=1)[0].metadata == METADATA[0], None, ""),
    "diversity of sparse results": (
        lambda s: len(s.max_marginal_relevance_search("foo bar", k=2, mode="sparse")) == 2, None, ""),
    "a store of the sparse half alone": (
        lambda s: TwinVecVectorStore(None, sparse="bm25"), ConfigurationError, "must be LangChain Embeddings"),  # type: ignore[arg-type]
    "nested dicts in filters": (
        lambda s: s.similarity_search("foo", filter={"details": {"page": 2}}), FilterError, r"details\.page"),
    "how a collection is made anew": (
        lambda s: TwinVecVectorStore(Consistent(), force_recreate=True), ConfigurationError, r"store\.delete\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_different_on_purpose(store: TwinVecVectorStore, name: str) -> None:
    act, error, message = DIFFERENT[name]
    if error is None:
        assert act(store)
    else:
        with pytest.raises(error, match=message):
            act(store)

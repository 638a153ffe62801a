"""TwinVecReranker behind LangChain's interfaces, and the retriever's third stage."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document

from langchain_twinvec import TwinVecEmbeddings, TwinVecReranker, TwinVecVectorStore
from reference.rerankers import build_cross_encoder, reference_cross_encoder
from twinvec import Reranker
from twinvec.errors import ConfigurationError

QUERY = "what is the capital of china"
TEXTS = ["北京", "the capital of russia is moscow", "quick sort in python", "gravity", "столица", "a query", "china"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, float]:
    scores = reference_cross_encoder(folder)([(QUERY, text) for text in TEXTS])
    return dict(sorted(zip(TEXTS, scores.tolist(), strict=True), key=lambda item: -item[1]))


@pytest.fixture
def store(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    store = TwinVecVectorStore(gte)
    store.add_texts(TEXTS, metadatas=[{"n": n} for n in range(len(TEXTS))])
    return store


def test_both_interfaces(reranker: Reranker, wanted: dict[str, float]) -> None:
    made = TwinVecReranker(reranker=reranker)
    assert isinstance(made, BaseCrossEncoder)
    assert isinstance(made, BaseDocumentCompressor)
    documents = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    found = made.compress_documents(documents, QUERY)
    assert [d.page_content for d in found] == list(wanted)[:3]
    assert [d.metadata["relevance_score"] for d in found] == pytest.approx(list(wanted.values())[:3], abs=1e-4)
    assert all("relevance_score" not in d.metadata for d in documents), "the given ones stay as they are"
    assert asyncio.run(made.acompress_documents(documents, QUERY)) == found
    scores = made.score([(QUERY, text) for text in TEXTS])
    assert scores == pytest.approx([wanted[text] for text in TEXTS], abs=1e-4)
    assert all(type(score) is float for score in scores)
    assert made.compress_documents([], QUERY) == []


def test_options(reranker: Reranker, wanted: dict[str, float], folder: Path) -> None:
    documents = [Document(text) for text in TEXTS]
    least = list(wanted.values())[4] - 1e-3
    every = TwinVecReranker(reranker=reranker, top_n=None, min_score=least).compress_documents(documents, QUERY)
    assert [d.page_content for d in every] == list(wanted)[:5]
    with pytest.raises(ConfigurationError, match="model="):
        TwinVecReranker()
    with pytest.raises(ConfigurationError, match="model="):
        TwinVecReranker(model=str(folder), reranker=reranker)
    with pytest.raises(ValueError, match="top_n"):
        TwinVecReranker(reranker=reranker, top_n=0)
    with pytest.raises(ValueError, match="top"):
        TwinVecReranker(reranker=reranker, top=3)  # type: ignore[call-arg]
    loaded = TwinVecReranker(model=str(folder), activation="sigmoid")
    assert all(0 < score < 1 for score in loaded.score([(QUERY, text) for text in TEXTS]))
    again = pickle.loads(pickle.dumps(loaded))
    assert again.score([(QUERY, "a")]) == loaded.score([(QUERY, "a")])


def test_a_compression_retriever(reranker: Reranker, store: TwinVecVectorStore, wanted: dict[str, float]) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=TwinVecReranker(reranker=reranker, top_n=2), base_retriever=store.as_retriever(k=7)
    )
    assert [d.page_content for d in retriever.invoke(QUERY)] == list(wanted)[:2]
    assert [d.page_content for d in asyncio.run(retriever.ainvoke(QUERY))] == list(wanted)[:2]


class Shorter(TwinVecReranker):
    """A user's own rule: shorter is better."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [-float(len(text)) for _, text in text_pairs]


class Never(TwinVecReranker):
    """A user's own compressor."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        return []


def test_a_subclass_is_heard_on_every_path(reranker: Reranker) -> None:
    documents, shorter = [Document(text) for text in TEXTS], Shorter(reranker=reranker, top_n=1)
    assert [d.page_content for d in shorter.compress_documents(documents, QUERY)] == ["北京"]
    assert [d.page_content for d in asyncio.run(shorter.acompress_documents(documents, QUERY))] == ["北京"]
    assert asyncio.run(shorter.ascore([("a", "bc")])) == [-2.0]
    assert asyncio.run(Never(reranker=reranker).acompress_documents(documents, QUERY)) == []


def test_the_retriever_has_a_third_stage(
    reranker: Reranker, store: TwinVecVectorStore, wanted: dict[str, float]
) -> None:
    retriever = store.as_retriever(k=3, rerank=reranker, rerank_k=7)
    best = list(wanted)[:3]
    assert [d.page_content for d in retriever.invoke(QUERY)] == best
    assert [d.page_content for d in asyncio.run(retriever.ainvoke(QUERY))] == best
    assert [[d.page_content for d in each] for each in retriever.batch([QUERY, QUERY])] == [best, best]
    explained = store.as_retriever(k=1, rerank=reranker, explain=True).invoke(QUERY)[0].metadata["_twinvec"]
    assert explained["rerank_rank"] == 1
    assert explained["rerank_score"] == pytest.approx(wanted[best[0]], abs=1e-4)
    [(document, score)] = store.similarity_search_with_score(QUERY, k=1, rerank=reranker)
    assert document.page_content == best[0]
    assert score == pytest.approx(wanted[best[0]], abs=1e-4)
    with pytest.raises(ValueError, match="rerank must be"):
        store.as_retriever(rerank="a model")

"""What people get wrong first, each answered in the words of LangChain's users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from qdrant_client import models

from langchain_twinvec import HybridRetriever, TwinVecEmbeddings, TwinVecVectorStore
from twinvec.errors import TwinVecError

Store: Any = TwinVecVectorStore
Model: Any = TwinVecEmbeddings
Retriever: Any = HybridRetriever
MISTAKES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a folder as Chroma calls it": (lambda e, s: Store(e, persist_directory="x"), "here it is path="),
    "a collection as all others call it": (
        lambda e, s: Store(e, url="http://localhost:1", collection_name="kb"), "here it is collection="),
    "a place as Qdrant calls it": (lambda e, s: Store(e, location=":memory:"), "path= or url="),
    "a client": (lambda e, s: Store(e, client=object()), r"store=QdrantStore\(client="),
    "a connection": (lambda e, s: Store(e, connection="postgresql://x"), "here it is url="),
    "a sparse half as Qdrant calls it": (lambda e, s: Store(e, sparse_embedding=e), "here it is sparse="),
    "a mode as Qdrant calls it": (lambda e, s: Store(e, retrieval_mode="hybrid"), "here it is mode="),
    "a batch size for the store": (lambda e, s: Store(e, batch_size=8), "batch_size= of add_texts"),
    "a distance": (lambda e, s: Store(e, distance_strategy="l2"), "are compared by cosine"),
    "the name of a model for a model": (lambda e, s: Store("gte"), "must be LangChain Embeddings"),
    "the wrong end of from_texts": (lambda e, s: Store.from_texts("one text", e), "not one string"),
    "arguments of HuggingFaceEmbeddings": (
        lambda e, s: Model(model_name="x", encode_kwargs={}), "from_huggingface"),
    "an unknown option of the model": (lambda e, s: Model(model="x", dimensions=8), "dimensions"),
    "a filter as Chroma calls it": (lambda e, s: s.similarity_search("a", where={"n": 1}), "here it is filter="),
    "a filter as Milvus calls it": (lambda e, s: s.similarity_search("a", expr="n == 1"), "here it is filter="),
    "a filter to delete by, as Chroma calls it": (lambda e, s: s.delete(where={"n": 1}), "here it is filter="),
    "a filter that is a string": (lambda e, s: s.similarity_search("a", filter="n == 1"), "filter"),
    "a filter with an unknown operator": (lambda e, s: s.similarity_search("a", filter={"n": {"$near": 1}}), "near"),
    "a filter of one key with many values": (lambda e, s: s.similarity_search("a", filter={"n": [1, 2]}), r"\$in"),
    "a filter as Qdrant has it": (lambda e, s: s.similarity_search("a", filter=models.Filter(must=[])), "Filter"),
    "fusion as Qdrant calls it": (lambda e, s: s.similarity_search("a", hybrid_fusion="rrf"), "here it is fusion="),
    "an unknown fusion": (lambda e, s: s.as_retriever(fusion="best"), "fusion 'best' is not one of rrf"),
    "no results asked for": (lambda e, s: s.similarity_search("a", k=0), "k=0 must be an integer from 1"),
    "k in words": (lambda e, s: s.as_retriever(search_kwargs={"top_k": 3}), "here it is k="),
    "an unknown search_type": (lambda e, s: s.as_retriever(search_type="hybrid"), "'hybrid' is not one of similarity"),
    "a threshold that is missing": (
        lambda e, s: s.as_retriever(search_type="similarity_score_threshold"), "needs score_threshold from 0 to 1"),
    "an unknown search argument": (lambda e, s: s.as_retriever(search_kwargs={"kk": 3}), "'kk' is not one of k"),
    "a retriever over another store": (lambda e, s: Retriever(vectorstore=object()), "must be a TwinVecVector"),
    "metadata that is no dict": (lambda e, s: s.add_texts(["a"], ["x"]), "metadata"),
    "metadata that is one dict": (lambda e, s: s.add_texts(["a"], {"n": 1}), "metadata"),
    "fewer metadatas than texts": (lambda e, s: s.add_texts(["a", "b"], [{}]), "2 texts but 1 metadatas"),
    "a value that has no JSON": (lambda e, s: s.add_texts(["a"], [{"when": object()}]), "'when'"),
    "a text that is none": (lambda e, s: s.add_texts([None]), "NoneType"),
    "a string for a list of documents": (lambda e, s: e.embed_documents("text"), "list of strings"),
    "a query that is no string": (lambda e, s: s.similarity_search(None), "must be a string"),
    "a list for a query": (lambda e, s: s.as_retriever().invoke(["a"]), "must be a string"),
    "texts where documents go": (lambda e, s: s.add_documents(["text"]), "Document"),
    "an index that is not there": (
        lambda e, s: Store.from_existing(e, path="/nowhere/at/all"), "/nowhere/at/all"),
    "a task for a model without instructions": (lambda e, s: e.with_task("find"), "instructions"),
    "a vector of another model": (lambda e, s: s.similarity_search_by_vector([1.0, 2.0]), "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_it_says_what_to_do(name: str, gte: TwinVecEmbeddings, store: TwinVecVectorStore) -> None:
    store.add_documents([Document(page_content="a", metadata={"n": 1})])
    make, says = MISTAKES[name]
    with pytest.raises((ValueError, TypeError, TwinVecError), match=says):
        make(gte, store)

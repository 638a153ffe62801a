"""A program written against langchain-core alone: it knows neither TwinVec nor any other integration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore

DOCUMENTS = [
    Document(id="sort", page_content="sorted() returns a new list", metadata={"source": "python.md"}),
    Document(id="open", page_content="open() returns a file", metadata={"source": "python.md"}),
    Document(id="wal", page_content="WAL lets readers and a writer work together", metadata={"source": "sqlite.md"}),
    Document(id="moscow", page_content="Москва — столица России", metadata={"source": "geo.md"}),
    Document(id="paris", page_content="Paris is the capital of France", metadata={"source": "geo.md"}),
]
QUESTIONS = ["how do I sort a list?", "what is the capital of Russia?"]


def run(embeddings: Embeddings, make_store: Callable[[Embeddings], VectorStore]) -> dict[str, Any]:
    """Use every part of the interfaces; return what came out."""
    report: dict[str, Any] = {}
    store = make_store(embeddings)
    report["ids"] = store.add_documents(DOCUMENTS)
    report["found"] = [_ids(store.similarity_search(question, k=3)) for question in QUESTIONS]
    report["scored"] = [d.id for d, _ in store.similarity_search_with_score(QUESTIONS[0], k=2)]
    report["by vector"] = _ids(store.similarity_search_by_vector(embeddings.embed_query(QUESTIONS[1]), k=2))
    report["diverse"] = _ids(store.max_marginal_relevance_search(QUESTIONS[0], k=3, fetch_k=5, lambda_mult=0.3))
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 5})
    report["retrieved"] = [_ids(found) for found in retriever.batch(QUESTIONS)]
    report["by ids"] = sorted(_ids(store.get_by_ids(["paris", "sort", "missing"])))
    report["answer"] = _chain(store).invoke(QUESTIONS[0])
    report["streamed"] = "".join(_chain(store).stream(QUESTIONS[0]))
    store.delete(["sort"])
    report["deleted"] = _ids(store.get_by_ids(["sort", "open"]))
    store.add_texts(["sorted() is stable"], [{"source": "python.md"}], ids=["open"])
    report["replaced"] = store.get_by_ids(["open"])[0].page_content
    report["indexed"] = _index(make_store(embeddings))
    report["async"] = asyncio.run(_async(make_store(embeddings)))
    return report


def _ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def _chain(store: VectorStore) -> Any:
    def together(documents: list[Document]) -> str:
        return "\n".join(document.page_content for document in documents)

    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    model = FakeListChatModel(responses=["an answer"])
    context = store.as_retriever(search_kwargs={"k": 2}) | together
    return {"context": context, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()


def _index(store: VectorStore) -> list[int]:
    manager = InMemoryRecordManager("portable")
    manager.create_schema()
    counts = []
    for documents in (DOCUMENTS, DOCUMENTS, DOCUMENTS[:2]):
        plain = [Document(page_content=d.page_content, metadata=d.metadata) for d in documents]
        result = index(plain, manager, store, cleanup="full", source_id_key="source", key_encoder="sha256")
        counts += [result["num_added"], result["num_skipped"], result["num_deleted"]]
    return counts


async def _async(store: VectorStore) -> list[Any]:
    await store.aadd_documents(DOCUMENTS)
    found = await asyncio.gather(*(store.asimilarity_search(question, k=2) for question in QUESTIONS))
    retrieved = await store.as_retriever(search_kwargs={"k": 1}).abatch(QUESTIONS)
    await store.adelete(["wal"])
    left = await store.aget_by_ids(["wal", "moscow"])
    return [*map(_ids, found), *map(_ids, retrieved), _ids(left)]

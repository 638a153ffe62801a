"""What agents use: langgraph's store for memories, and a retriever as a tool."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from langchain_core.tools import create_retriever_tool
from langgraph.store.memory import InMemoryStore

from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore

MEMORIES = {"food": "likes borscht and solyanka", "work": "writes compilers", "city": "lives in Saratov"}


@pytest.mark.parametrize("with_prompts", [False, True])
def test_langgraphs_store_ranks_by_our_cosines(
    with_prompts: bool, gte: TwinVecEmbeddings, giga: TwinVecEmbeddings
) -> None:
    embeddings = giga if with_prompts else gte
    dims = embeddings.embedder.dim
    assert dims is not None
    memory = InMemoryStore(index={"embed": embeddings, "dims": dims, "fields": ["text"]})
    for key, text in MEMORIES.items():
        memory.put(("user", "1"), key, {"text": text})
    memory.put(("user", "2"), "other", {"text": "somebody else's"})
    rows = np.array(embeddings.embed_documents(list(MEMORIES.values())))
    cosines = dict(zip(MEMORIES, rows @ np.array(embeddings.embed_query("where does he live?")), strict=True))
    for found in (
        memory.search(("user", "1"), query="where does he live?"),
        asyncio.run(memory.asearch(("user", "1"), query="where does he live?")),
    ):
        assert [item.key for item in found] == sorted(cosines, key=lambda key: -cosines[key])
        assert [item.score for item in found] == pytest.approx([cosines[item.key] for item in found], abs=1e-5)


def test_a_retriever_is_a_tool(gte: TwinVecEmbeddings) -> None:
    store = TwinVecVectorStore.from_texts(list(MEMORIES.values()), gte)
    retriever = store.as_retriever(k=2)
    tool = create_retriever_tool(
        retriever, "memories", "What is known of the user.", response_format="content_and_artifact"
    )
    expected = retriever.invoke("compilers")
    call = {"name": "memories", "args": {"query": "compilers"}, "id": "1", "type": "tool_call"}
    for answer in (tool.invoke(call), asyncio.run(tool.ainvoke(call))):
        assert answer.content == "\n\n".join(document.page_content for document in expected)
        assert answer.artifact == expected

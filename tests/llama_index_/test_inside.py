"""Our classes inside of LlamaIndex's larger parts: graphs, memories, chat, agents' tools. No network, and MockLLM."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import Document, PropertyGraphIndex, StorageContext, VectorStoreIndex
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.graph_stores.simple_labelled import SimplePropertyGraphStore
from llama_index.core.graph_stores.types import KG_NODES_KEY, KG_RELATIONS_KEY, EntityNode, Relation
from llama_index.core.indices.property_graph import VectorContextRetriever
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import Memory, VectorMemory, VectorMemoryBlock
from llama_index.core.retrievers import AutoMergingRetriever, RecursiveRetriever, VectorIndexAutoRetriever
from llama_index.core.schema import BaseNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode, TransformComponent
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores.types import VectorStoreInfo

from llama_index_twinvec import HybridRetriever, TwinVecVectorStore
from twinvec.errors import InvalidRecordError


class Capitals(TransformComponent):
    """Finds the entities in "X is the capital of Y"."""

    def __call__(self, nodes: Any, **kwargs: Any) -> Any:
        for node in nodes:
            city, country = node.get_content().rstrip(".").split(" is the capital of ")
            entities = [EntityNode(name=city, label="CITY"), EntityNode(name=country, label="COUNTRY")]
            relation = Relation(label="CAPITAL_OF", source_id=city, target_id=country)
            node.metadata |= {KG_NODES_KEY: entities, KG_RELATIONS_KEY: [relation]}
        return nodes


@pytest.mark.parametrize("use_async", [False, True])
def test_the_vectors_of_a_property_graph(store: TwinVecVectorStore, use_async: bool) -> None:
    """A graph embeds an entity's name, and stores it with metadata: not the text that an index would embed."""
    texts = ["Moscow is the capital of Russia.", "Paris is the capital of France.", "Rome is the capital of Italy."]
    index = PropertyGraphIndex.from_documents(
        [Document(text=text) for text in texts],
        llm=MockLLM(),
        embed_model=store.embedding,
        kg_extractors=[Capitals()],
        property_graph_store=SimplePropertyGraphStore(),
        vector_store=store,
        use_async=use_async,
        show_progress=False,
    )
    names = sorted(node.get_content().split(" (")[0] for node in store.get_nodes())
    assert names == ["France", "Italy", "Moscow", "Paris", "Rome", "Russia"]
    retriever = VectorContextRetriever(
        index.property_graph_store, vector_store=store, embed_model=store.embedding, similarity_top_k=1,
        include_text=False,
    )  # fmt: skip
    (paris,) = [node.get_content() for node in store.get_nodes() if node.get_content().startswith("Paris")]
    found = asyncio.run(retriever.aretrieve(paris)) if use_async else retriever.retrieve(paris)
    assert [node.get_content() for node in found] == ["Paris -> CAPITAL_OF -> France"]


def test_another_models_vectors_are_noticed_there_too(store: TwinVecVectorStore) -> None:
    with pytest.raises(InvalidRecordError, match="does not come from this store's model"):
        store.add([TextNode(text="Paris", metadata={"kind": "city"}, embedding=[0.5] * 64)])


def test_a_memory_block_remembers_its_session(store: TwinVecVectorStore) -> None:
    block = VectorMemoryBlock(vector_store=store, embed_model=store.embedding, similarity_top_k=3)

    async def talk() -> list[str]:
        for session, text in (("s1", "my cat is called Tom"), ("s2", "my dog is called Rex"), ("s1", "it rains")):
            message = ChatMessage(role="user", content=text, additional_kwargs={"session_id": session})
            await block.aput([message], from_short_term_memory=True, session_id=session)
        asked = [ChatMessage(role="user", content="what is my cat called")]
        return [await block.aget(asked, session_id=session) for session in ("s1",)]

    (first,) = asyncio.run(talk())
    assert "Tom" in first
    assert "Rex" not in first, "another session's"
    assert len(store.get_nodes()) == 3


def test_a_memory_flushes_what_is_old_into_the_block(store: TwinVecVectorStore) -> None:
    block = VectorMemoryBlock(vector_store=store, embed_model=store.embedding, similarity_top_k=2)
    memory = Memory.from_defaults(
        session_id="s", token_limit=60, chat_history_token_ratio=0.2, token_flush_size=10, memory_blocks=[block]
    )

    async def talk() -> list[ChatMessage]:
        for number in range(6):
            await memory.aput(ChatMessage(role="user", content=f"remark number {number} about apples and figs"))
        return list(await memory.aget())

    asyncio.run(talk())
    assert store.get_nodes(), "nothing was flushed"


def test_vector_memory(store: TwinVecVectorStore) -> None:
    memory = VectorMemory.from_defaults(
        vector_store=store, embed_model=store.embedding, retriever_kwargs={"similarity_top_k": 1}
    )
    for text in ("apples are red", "figs are sweet"):
        memory.put(ChatMessage(role="user", content=text))
    assert [message.content for message in memory.get("apples are red")] == ["apples are red"]
    memory.reset()
    assert not store.get_nodes()


def index_of(store: TwinVecVectorStore, nodes: list[Any], context: StorageContext | None = None) -> VectorStoreIndex:
    context = context or StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(nodes, storage_context=context, embed_model=store.embedding)


@pytest.mark.parametrize("through_async", [False, True])
def test_small_chunks_become_their_parents(store: TwinVecVectorStore, through_async: bool) -> None:
    parent = TextNode(id_="parent", text="apples are red and figs are sweet")
    children: list[BaseNode] = [TextNode(id_=f"c{i}", text=text) for i, text in enumerate(("apples are red", "figs"))]
    for child in children:
        child.relationships[NodeRelationship.PARENT] = RelatedNodeInfo(node_id="parent")
    parent.relationships[NodeRelationship.CHILD] = [RelatedNodeInfo(node_id=child.node_id) for child in children]
    context = StorageContext.from_defaults(vector_store=store)
    context.docstore.add_documents([parent, *children])
    index_of(store, children, context)
    ours: Any = HybridRetriever(store)
    merging = AutoMergingRetriever(ours, context)
    found = asyncio.run(merging.aretrieve("apples")) if through_async else merging.retrieve("apples")
    assert [node.node_id for node in found] == ["parent"]


def test_links_are_followed(store: TwinVecVectorStore) -> None:
    target = TextNode(id_="target", text="the whole chapter on apples")
    store.add([IndexNode(id_="link", text="apples", index_id="target")])
    recursive = RecursiveRetriever(
        "root", retriever_dict={"root": HybridRetriever(store)}, node_dict={"target": target}
    )
    assert [node.node_id for node in recursive.retrieve("apples")] == ["target"]


def test_filters_that_a_model_writes(store: TwinVecVectorStore) -> None:
    """MockLLM repeats its prompt, so a fixed answer stands in for it."""
    from llama_index.core.llms import CompletionResponse

    class Writes(MockLLM):
        def complete(self, *args: Any, **kwargs: Any) -> CompletionResponse:
            filters = '[{"key": "kind", "value": "fruit", "operator": "=="}]'
            return CompletionResponse(text=f'{{"query": "", "filters": {filters}, "top_k": 5}}')

    index = index_of(store, [TextNode(text=t, metadata={"kind": k}) for t, k in (("fig", "fruit"), ("cat", "animal"))])
    info = VectorStoreInfo(content_info="things", metadata_info=[])
    retriever = VectorIndexAutoRetriever(index, vector_store_info=info, llm=Writes(max_tokens=None))
    assert [node.node.get_content() for node in retriever.retrieve("which fruits are there")] == ["fig"]


def test_a_chat_engine_and_an_agents_tool(store: TwinVecVectorStore) -> None:
    index = index_of(store, [TextNode(text="apples are red"), TextNode(text="figs are sweet")])
    engine = index.as_chat_engine(chat_mode=ChatMode.CONTEXT, llm=MockLLM())
    assert "apples are red" in str([n.node.get_content() for n in engine.chat("apples").source_nodes])
    tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=MockLLM()), name="fruits", description="on fruits")
    assert "apples are red" in str(asyncio.run(tool.acall("apples")))

"""VectorStoreIndex over a store on disk: building, inserting, refreshing, deleting, asking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, IndexNode, NodeRelationship, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_.counting import Counter
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore

TOPICS = ["sorting lists in python", "the capital of Russia", "the capital of China", "emoji and words"]
MODES = ["default", "sparse", "hybrid", "mmr"]


def documents() -> list[Document]:
    return [
        Document(
            id_=f"d{i}",
            text=" ".join(f"Sentence {j} of document {i} is about {TOPICS[(i + j) % 4]}." for j in range(6)),
            metadata={"topic": TOPICS[i % 4]},
        )
        for i in range(8)
    ]


@pytest.fixture
def store(own: TwinVecEmbedding, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    with TwinVecVectorStore(own, path=tmp_path / "index") as made:
        yield made


def build(store: TwinVecVectorStore, **options: Any) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        documents(),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=store.embedding,
        transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0)],
        **options,
    )


def texts_of(store: TwinVecVectorStore, document: str) -> list[str]:
    filters = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value=document)])
    return sorted(node.get_content() for node in store.get_nodes(filters=filters))


@pytest.mark.parametrize("use_async", [False, True])
def test_building_is_one_forward_pass_per_text(store: TwinVecVectorStore, use_async: bool) -> None:
    counter = Counter(store.index.embedder)
    build(store, use_async=use_async)
    assert store.client.count() == counter.texts > 8
    assert counter.forwards <= 2


def test_building_with_async_inside_of_a_running_loop(store: TwinVecVectorStore) -> None:
    async def run() -> None:
        index = build(store, use_async=True)
        assert index.as_retriever(vector_store_query_mode="hybrid").retrieve("the capital of Russia")

    asyncio.run(run())
    assert store.client.count() > 8


@pytest.mark.parametrize("mode", MODES)
def test_asking_is_one_forward_pass(store: TwinVecVectorStore, mode: str) -> None:
    index = build(store)
    counter = Counter(store.index.embedder)
    retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=3)
    found = retriever.retrieve("the capital of Russia")
    assert (len(found), counter.texts) == (3, 1)
    again = asyncio.run(retriever.aretrieve("the capital of Russia"))
    assert [(node.node, node.score) for node in again] == [(node.node, node.score) for node in found]
    if mode in ("sparse", "hybrid"):
        assert "capital of Russia" in found[0].text


def test_the_next_process_finds_the_same(store: TwinVecVectorStore, tmp_path: Path) -> None:
    found = build(store).as_retriever(similarity_top_k=4).retrieve("sorting")
    store.close()
    with TwinVecVectorStore(store.embedding, path=tmp_path / "index") as reopened:
        index = VectorStoreIndex.from_vector_store(reopened, embed_model=store.embedding)
        again = index.as_retriever(similarity_top_k=4).retrieve("sorting")
        assert [(node.node, node.score) for node in again] == [(node.node, node.score) for node in found]
        assert again[0].node.source_node is not None
        assert NodeRelationship.NEXT in {key for node in again for key in node.node.relationships}


@pytest.mark.parametrize("through_async", [False, True])
def test_inserting_and_deleting_documents(store: TwinVecVectorStore, through_async: bool) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    new = Document(id_="new", text="A text about jazz and improvisation.", metadata={"topic": "music"})
    if through_async:
        asyncio.run(index.ainsert(new))
    else:
        index.insert(new)
    assert texts_of(store, "new") == ["A text about jazz and improvisation."]
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid",
        filters=MetadataFilters(filters=[MetadataFilter(key="topic", value="music")]),
    )
    assert [node.node.ref_doc_id for node in retriever.retrieve("jazz")] == ["new"]
    if through_async:
        asyncio.run(index.adelete_ref_doc("new"))
    else:
        index.delete_ref_doc("new")
    assert store.client.count() == 0


@pytest.mark.parametrize("through_async", [False, True])
def test_refreshing_embeds_only_what_has_changed(store: TwinVecVectorStore, through_async: bool) -> None:
    index, given = build(store), documents()
    given[2] = Document(id_="d2", text="An entirely new text.", metadata={})
    given.append(Document(id_="d9", text="One more document.", metadata={}))
    counter, before = Counter(store.index.embedder), len(texts_of(store, "d2"))
    count = store.client.count()
    refreshed = asyncio.run(index.arefresh_ref_docs(given)) if through_async else index.refresh_ref_docs(given)
    assert [i for i, done in enumerate(refreshed) if done] == [2, 8]
    assert texts_of(store, "d2") == ["An entirely new text."]
    assert counter.texts == 2
    assert store.client.count() == count - before + 2


def test_deleting_nodes_through_the_index(store: TwinVecVectorStore) -> None:
    index = build(store)
    ids = [node.node_id for node in store.get_nodes()]
    index.delete_nodes(ids[:3])
    asyncio.run(index.adelete_nodes(ids[3:5]))
    assert sorted(node.node_id for node in store.get_nodes()) == sorted(ids[5:])


@pytest.mark.parametrize("use_async", [False, True])
def test_a_query_engine_answers_from_what_was_found(store: TwinVecVectorStore, use_async: bool) -> None:
    engine = build(store).as_query_engine(vector_store_query_mode="hybrid", alpha=0.3, similarity_top_k=3)
    question = "What is the capital of China?"
    response = asyncio.run(engine.aquery(question)) if use_async else engine.query(question)
    assert len(response.source_nodes) == 3
    assert all(node.text in str(response) for node in response.source_nodes)  # the mock repeats its prompt


def test_index_nodes_lead_to_what_they_stand_for(store: TwinVecVectorStore) -> None:
    inner = TextNode(id_="inner", text="the long text behind the summary")
    summary = IndexNode(id_="summary", text="a summary about capital cities", index_id="inner", obj=inner)
    plain = TextNode(id_="plain", text="plain words about python")
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([summary, plain], storage_context=storage, embed_model=store.embedding)
    # LlamaIndex asks for its IndexNodes alone where it has some
    assert [node.node_id for node in index.as_retriever(similarity_top_k=2).retrieve("capital")] == ["inner"]
    found = HybridRetriever(store, similarity_top_k=2, object_map={"inner": inner}).retrieve("capital")
    assert {node.node_id for node in found} == {"inner", "plain"}


def test_persisting_the_storage_flushes_the_store(store: TwinVecVectorStore, tmp_path: Path) -> None:
    index = build(store)
    index.storage_context.persist(persist_dir=str(tmp_path / "storage"))
    assert (tmp_path / "storage" / "docstore.json").is_file()

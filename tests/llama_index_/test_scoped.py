"""One tenant's part of a store: nothing outside of it is read, written, deleted, listed or explained."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.core.vector_stores.types import VectorStoreQueryMode as Mode

from llama_index_.samples import QUERY, TEXTS, by
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from twinvec.errors import ConfigurationError, InvalidRecordError
from twinvec_stores import Eq

TENANTS = {"a": TEXTS[:2], "b": TEXTS[2:5]}
FORMS: list[Any] = [
    {"tenant": "a"},
    Eq("tenant", "a"),
    MetadataFilters(filters=[MetadataFilter(key="tenant", value="a")]),
]


@pytest.fixture(params=["memory", "embedded"])
def shared(request: pytest.FixtureRequest, embedding: TwinVecEmbedding, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    with TwinVecVectorStore(embedding, path=tmp_path / "index" if request.param == "embedded" else None) as store:
        store.add(
            [
                TextNode(id_=f"{tenant}{i}", text=text, metadata={"tenant": tenant})
                for tenant, texts in TENANTS.items()
                for i, text in enumerate(texts)
            ]
        )
        yield store


def reads(store: TwinVecVectorStore) -> dict[str, Callable[[], list[Any]]]:
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    query = VectorStoreQuery(query_str=QUERY, similarity_top_k=10)
    return {
        "query": lambda: list(store.query(query).nodes or []),
        "aquery": lambda: list(asyncio.run(store.aquery(query)).nodes or []),
        "filters alone": lambda: list(store.query(VectorStoreQuery(filters=MetadataFilters(filters=[]))).nodes or []),
        **{
            f"as_retriever {mode.value}": lambda mode=mode: [  # type: ignore[misc]
                found.node
                for found in index.as_retriever(similarity_top_k=10, vector_store_query_mode=mode).retrieve(QUERY)
            ]
            for mode in (Mode.DEFAULT, Mode.SPARSE, Mode.HYBRID, Mode.MMR)
        },
        "another filter": lambda: [
            found.node for found in HybridRetriever(store, filters=by("tenant", "b", "!=")).retrieve(QUERY)
        ],
        "of the other": lambda: [
            found.node for found in HybridRetriever(store, filters=by("tenant", ["a", "b"], "in")).retrieve(QUERY)
        ],
        "retriever": lambda: [found.node for found in HybridRetriever(store).retrieve(QUERY)],
        "aretriever": lambda: [found.node for found in asyncio.run(HybridRetriever(store).aretrieve(QUERY))],
        "engine": lambda: [found.node for found in index.as_query_engine().query(QUERY).source_nodes],
        "get_nodes": store.get_nodes,
        "by id": lambda: store.get_nodes(["a0", "b0", "b1"]),
        "aget_nodes": lambda: asyncio.run(store.aget_nodes(["a0", "b0"], by("tenant", "b", "!="))),
    }


@pytest.mark.parametrize("form", FORMS, ids=["dict", "Filter", "MetadataFilters"])
def test_every_way_of_reading_stays_inside(shared: TwinVecVectorStore, form: Any) -> None:
    for name, read in reads(shared.scoped(form)).items():
        found = read()
        assert found, name
        assert {node.metadata["tenant"] for node in found} == {"a"}, name
    assert {node.metadata["tenant"] for node in shared.get_nodes()} == {"a", "b"}


def test_deletions_stay_inside(shared: TwinVecVectorStore) -> None:
    view = shared.scoped({"tenant": "a"})
    view.delete_nodes(["b0", "a0"])
    view.delete_nodes(filters=by("tenant", "b"))
    asyncio.run(view.adelete_nodes(["b1"]))
    view.delete("b2")
    assert sorted(node.node_id for node in shared.get_nodes()) == ["a1", "b0", "b1", "b2"]
    view.clear()
    assert sorted(node.node_id for node in shared.get_nodes()) == ["b0", "b1", "b2"]


def test_writes_that_contradict_it_are_refused(shared: TwinVecVectorStore) -> None:
    view = shared.scoped({"tenant": "a"})
    for node in (TextNode(text="x", metadata={"tenant": "b"}), TextNode(id_="b0", text="x", metadata={"tenant": "a"})):
        with pytest.raises(InvalidRecordError, match="outside the scope"):
            view.add([node])
        with pytest.raises(InvalidRecordError, match="outside the scope"):
            asyncio.run(view.async_add([node]))
    assert len(shared.get_nodes()) == 5
    view.add([TextNode(id_="new", text="sorting the world")])
    assert [node.node_id for node in shared.get_nodes(filters=by("tenant", "a"))].count("new") == 1
    with pytest.raises(ConfigurationError, match="matches everything"):
        shared.scoped({})


def test_words_count_as_often_as_in_the_scope(gte_folder: str) -> None:
    """BM25's idf of a tenant must not tell what others have written."""
    embedding = TwinVecEmbedding(model_name=gte_folder, sparse="bm25", dtype="float32")
    scores = []
    for texts in (TENANTS, {"a": TENANTS["a"]}):
        with TwinVecVectorStore(embedding) as store:
            for tenant, each in texts.items():
                store.add([TextNode(id_=f"{tenant}{text}", text=text, metadata={"tenant": tenant}) for text in each])
            found = store.scoped({"tenant": "a"}).query(VectorStoreQuery(query_str=QUERY, mode=Mode.SPARSE))
            scores.append(found.similarities)
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0]


def test_an_index_over_a_view_inserts_into_it(shared: TwinVecVectorStore) -> None:
    context = StorageContext.from_defaults(vector_store=shared.scoped({"tenant": "a"}))
    index = VectorStoreIndex.from_documents(
        [Document(id_="doc", text="sorting the world")], storage_context=context, embed_model=shared.embedding
    )
    assert len(shared.get_nodes(filters=by("tenant", "a"))) == 3
    index.delete_ref_doc("doc")
    assert len(shared.get_nodes(filters=by("tenant", "a"))) == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))])
def test_copies_of_a_view_are_views_and_subclasses_stay_what_they_are(embedding: TwinVecEmbedding, copied: Any) -> None:
    class Own(TwinVecVectorStore):
        def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
            raise PermissionError

    globals()["Own"] = Own  # where pickle looks for it
    Own.__qualname__ = "Own"
    made: Any = Own
    with made(embedding) as store:
        store.add([TextNode(text=text, metadata={"tenant": t}) for t, texts in TENANTS.items() for text in texts])
        view = copied(store.scoped({"tenant": "a"}))
        assert len(view.get_nodes()) == 2
        with pytest.raises(PermissionError):
            view.delete("x")
        with pytest.raises(InvalidRecordError, match="outside the scope"):
            view.add([TextNode(text="x", metadata={"tenant": "b"})])
        view.close()
        assert len(store.get_nodes()) == 5


def test_what_a_view_fills_in_is_in_the_node_and_in_no_text(shared: TwinVecVectorStore) -> None:
    view = shared.scoped({"tenant": "a"})
    view.add([TextNode(id_="new", text="a new one", metadata={"doc_id": "own", "n": 1})])
    shared.index.update_metadata(["new"], {"n": 2})
    for found in (view.get_nodes(["new"])[0], HybridRetriever(view, node_ids=["new"]).retrieve(QUERY)[0].node):
        assert found.metadata == {"doc_id": "own", "n": 2, "tenant": "a"}
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert found.get_content(mode) == "doc_id: own\nn: 2\n\na new one"
    (kept,) = shared.get_nodes(["a0"])
    assert (kept.metadata, kept.excluded_embed_metadata_keys) == ({"tenant": "a"}, [])

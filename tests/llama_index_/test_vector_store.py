"""TwinVecVectorStore: nodes in and out, deletion, opening and closing. On every engine."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode as Mode
from pydantic import AnyUrl

from llama_index_.conftest import Gate, local_clients
from llama_index_.counting import Counter
from llama_index_.samples import QUERY, TEXTS, ask, by, nodes
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from stores import milvus, postgres
from support import dense_of, sparse_of
from twinvec import Embedder
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    InvalidRecordError,
    StoreClosedError,
    StoreMismatchError,
)
from twinvec_stores import EmbeddedStore, Fusion, HybridIndex, MemoryStore, QdrantStore, StoreConfig
from twinvec_stores.engines.embedded import folder as _folder

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")


@pytest.fixture(params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest, gte: Embedder, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    embedding = TwinVecEmbedding(embedder=gte)
    if request.param == "qdrant":
        client, async_client = local_clients()
        config = StoreConfig.for_embedder(gte, fields={"ref_doc_id": "keyword"})
        inner = QdrantStore(client=client, async_client=async_client, collection="nodes", config=config)
        store = TwinVecVectorStore(embedding, store=inner)
    elif request.param == "postgres":
        store = TwinVecVectorStore(embedding, url=postgres.url(), collection=postgres.new_name())
    elif request.param == "milvus":
        store = TwinVecVectorStore(embedding, url=milvus.url(), collection=milvus.new_name())
    else:
        store = TwinVecVectorStore(embedding, path=tmp_path / "store" if request.param == "embedded" else None)
    with store:
        yield store


# --- nodes in and out


def everything() -> list[BaseNode]:
    text = TextNode(
        id_="text",
        text="Müller's café\n\tи Москва 🙂",
        metadata={"title": "T", "a.b": 1, "nested": {"deep": [1, 2.5, None, True]}, "doc_id": "the user's own"},
        excluded_embed_metadata_keys=["title"],
        excluded_llm_metadata_keys=["nested"],
        metadata_template="{key} => {value}",
        metadata_separator=" | ",
        text_template="{metadata_str} :: {content}",
        start_char_idx=3,
        end_char_idx=9,
        mimetype="text/markdown",
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", node_type="4", metadata={"x": 1}, hash="h"),
            NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="before"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="after"),
            NodeRelationship.PARENT: RelatedNodeInfo(node_id="above"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
        },
    )
    return [
        text,
        TextNode(id_="empty", text=""),
        Document(id_="document", text="a document", metadata={"year": 2024}),
        Node(id_="node", text_resource=MediaResource(text="a multimodal node", url=AnyUrl("https://example.org/a"))),
        IndexNode(id_="index", text="a summary", index_id="sub", obj=TextNode(id_="inner", text="the inner one")),
        ImageNode(id_="image", text="a caption", image_url="https://example.org/a.png"),
    ]


@pytest.mark.parametrize("node", everything(), ids=lambda node: node.node_id)
def test_a_node_comes_back_byte_for_byte(any_store: TwinVecVectorStore, node: BaseNode) -> None:
    node.embedding = any_store.embedding.get_text_embedding(node.get_content(MetadataMode.EMBED))
    before = node.model_dump_json()
    assert any_store.add([node]) == [node.node_id]
    assert node.model_dump_json() == before
    (same,) = any_store.get_nodes([node.node_id])
    assert (type(same), same.model_dump_json(), same.hash) == (type(node), before, node.hash)
    found = any_store.query(VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=1))
    assert found.nodes is not None
    node.embedding = None
    assert found.nodes[0].model_dump_json() == node.model_dump_json()


def test_a_node_survives_a_new_process(embedding: TwinVecEmbedding, tmp_path: Path) -> None:
    given = everything()
    with TwinVecVectorStore(embedding, path=tmp_path / "index") as store:
        store.add(given)
        store.persist()
    with TwinVecVectorStore(embedding, path=tmp_path / "index") as store:
        for node in given:
            (same,) = store.get_nodes([node.node_id])
            same.embedding = None
            assert same.model_dump_json() == node.model_dump_json()


def test_vectors_of_the_index_are_stored_and_the_sparse_half_costs_nothing(own: TwinVecEmbedding) -> None:
    with TwinVecVectorStore(own) as store:
        counter, given = Counter(own.embedder), nodes()
        own(given)
        store.add(given)
        assert counter.texts == 40
        records = {record.id: record for record in store.client.get([n.node_id for n in given], with_vectors=True)}
        both = own.embedder.embed_documents(TEXTS)
        for i, node in enumerate(given):
            record = records[node.node_id]
            assert record.dense is not None
            assert record.sparse is not None
            assert record.dense.tolist() == node.embedding
            assert record.sparse.to_dict() == sparse_of(both)[i].to_dict()


def test_more_nodes_than_the_memo_keeps_are_one_pass_each(own: TwinVecEmbedding) -> None:
    embedding = TwinVecEmbedding(model_name=own.model_name, dtype="float32", memo_bytes=0)
    with TwinVecVectorStore(embedding) as store:
        counter, given = Counter(own.embedder), nodes()
        asyncio.run(embedding.acall(given))
        asyncio.run(store.async_add(given))
        assert counter.texts == 40


@pytest.mark.parametrize("through_async", [False, True])
def test_nodes_without_vectors_are_embedded_in_one_pass(own: TwinVecEmbedding, through_async: bool) -> None:
    with TwinVecVectorStore(own) as store:
        counter, given = Counter(own.embedder), nodes()
        given[3].embedding = own.get_text_embedding(given[3].get_content(MetadataMode.EMBED))
        ids = asyncio.run(store.async_add(given)) if through_async else store.add(given)
        assert ids == [node.node_id for node in given]
        assert (counter.texts, store.client.count()) == (40, 40)
        expected = dense_of(own.embedder.embed_documents(TEXTS))
        np.testing.assert_array_equal([node.embedding for node in store.get_nodes(ids)], expected)


def test_a_known_id_is_replaced_and_no_nodes_are_fine(store: TwinVecVectorStore) -> None:
    assert store.add([]) == []
    store.add([TextNode(id_="a", text="first"), TextNode(id_="b", text="other")])
    store.add([TextNode(id_="a", text="second")])
    assert [node.get_content() for node in store.get_nodes(["a", "b", "missing"])] == ["second", "other"]


def test_vectors_of_another_model_are_refused(store: TwinVecVectorStore) -> None:
    with pytest.raises(InvalidRecordError, match="has 8 dimensions, this store's model has 64: pass the index the"):
        store.add([TextNode(text="a", embedding=[0.1] * 8)])
    assert store.client.count() == 0


def test_the_event_loop_goes_on_meanwhile(store: TwinVecVectorStore, gate: Gate) -> None:
    async def run() -> None:
        work = asyncio.create_task(store.async_add([TextNode(id_="x", text="a node that nobody has seen before")]))
        query = VectorStoreQuery(query_str="a query that nobody has asked before", mode=Mode.HYBRID)
        search = asyncio.create_task(store.aquery(query))
        assert await asyncio.to_thread(gate.entered.wait, 60)
        gate.open.set()
        assert await work == ["x"]
        assert (await search).ids is not None

    asyncio.run(run())


def test_sync_methods_work_inside_a_running_loop(any_store: TwinVecVectorStore) -> None:
    async def run() -> None:
        any_store.add(nodes(4))
        assert any_store.query(VectorStoreQuery(query_str=QUERY, mode=Mode.HYBRID, similarity_top_k=2)).ids
        assert len(any_store.get_nodes()) == 4
        any_store.delete("doc0")
        any_store.clear()

    asyncio.run(run())


# --- getting and deleting


def test_getting_nodes(any_store: TwinVecVectorStore) -> None:
    any_store.add(nodes())
    first_tens = by("n", 10, "<")
    for wanted, arguments in (
        (range(40), ()),
        ([7, 3], (["n07", "n03", "gone"],)),
        (range(10), (None, first_tens)),
        ([7], (["n07", "n23"], first_tens)),
        ([], ([],)),
    ):
        found, again = any_store.get_nodes(*arguments), asyncio.run(any_store.aget_nodes(*arguments))
        assert found == again
        assert sorted(node.node_id for node in found) == sorted(f"n{i:02}" for i in wanted)


@pytest.mark.parametrize("through_async", [False, True])
def test_deleting_nodes(any_store: TwinVecVectorStore, through_async: bool) -> None:
    def left() -> int:
        return any_store.client.count()

    def delete(name: str, *arguments: Any) -> None:
        if through_async:
            method = {"delete": "adelete", "delete_nodes": "adelete_nodes", "clear": "aclear"}[name]
            asyncio.run(getattr(any_store, method)(*arguments))
        else:
            getattr(any_store, name)(*arguments)

    any_store.add(nodes())
    delete("delete", "doc1")
    assert left() == 30
    delete("delete", "not there")
    delete("delete_nodes", ["n00", "n01", "not there"])
    assert left() == 28
    delete("delete_nodes", None, by("n", 37, ">="))
    assert left() == 25
    delete("delete_nodes", ["n02", "n03"], by("n", 2))
    assert [node.node_id for node in any_store.get_nodes(["n02", "n03"])] == ["n03"]
    delete("delete_nodes", [])
    with pytest.raises(ConfigurationError, match="clear"):
        delete("delete_nodes", None, MetadataFilters(filters=[]))
    assert left() == 24
    delete("clear")
    assert left() == 0


# --- opening


def test_places_that_do_not_fit_are_refused(embedding: TwinVecEmbedding, gte: Embedder, tmp_path: Path) -> None:
    memory = MemoryStore(StoreConfig.for_embedder(gte))
    for options, message in (
        ({"path": tmp_path, "url": "http://localhost"}, "one of path="),
        ({"url": "localhost:6333"}, "must begin with http"),
        ({"path": tmp_path, "collection": "kb"}, "collection: only for a server"),
        (
            {"store": memory, "fields": {"n": "integer"}, "api_key": "k"},
            "fields, api_key: already determined by the store",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            TwinVecVectorStore(embedding, **options)
    with pytest.raises(ConfigurationError, match="must be a LlamaIndex embedding, not Embedder"):
        TwinVecVectorStore(gte)  # type: ignore[arg-type]


def test_another_models_store_is_refused(embedding: TwinVecEmbedding, giga: Embedder, tmp_path: Path) -> None:
    TwinVecVectorStore(embedding, path=tmp_path / "index").close()
    with pytest.raises(FingerprintMismatchError) as error:
        TwinVecVectorStore(TwinVecEmbedding(embedder=giga), path=tmp_path / "index")
    assert error.value.given == giga.spec.fingerprint
    TwinVecVectorStore(embedding, path=tmp_path / "index").close()
    assert (tmp_path / "index").resolve() not in _folder._open, "still held"


def test_fields_are_indexed_and_checked(embedding: TwinVecEmbedding, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"n": "integer"}
    with TwinVecVectorStore(embedding, path=tmp_path / "index", fields=fields, quantization="int8") as store:
        assert dict(store.client.config.fields) == {"ref_doc_id": "keyword", "n": "integer"}
        assert store.client.config.quantization == "int8"
        with pytest.raises(InvalidRecordError, match="declared as integer"):
            store.add([TextNode(text="a", metadata={"n": "three"})])
    for same in ({}, {"fields": fields}):
        TwinVecVectorStore(embedding, path=tmp_path / "index", **same).close()  # type: ignore[arg-type]
    with pytest.raises(StoreMismatchError):
        TwinVecVectorStore(embedding, path=tmp_path / "index", fields={"other": "keyword"})


def test_a_store_that_others_made_is_readable(embedding: TwinVecEmbedding, gte: Embedder, tmp_path: Path) -> None:
    with HybridIndex(gte, EmbeddedStore(tmp_path / "index", StoreConfig.for_embedder(gte))) as index:
        index.add(["a text of another framework"], ids=["a"], metadata=[{"year": 2024}])
    with TwinVecVectorStore(embedding, path=tmp_path / "index") as store:
        (node,) = store.get_nodes(filters=by("year", 2024))
        assert (type(node), node.node_id, node.metadata) == (TextNode, "a", {"year": 2024})
        assert node.get_content() == "a text of another framework"
        assert ask(store, Mode.HYBRID).ids == ["a"]


def test_a_store_of_nodes_is_readable_for_others(embedding: TwinVecEmbedding, gte: Embedder, tmp_path: Path) -> None:
    with TwinVecVectorStore(embedding, path=tmp_path / "index") as store:
        store.add(nodes(1))
    with HybridIndex(gte, EmbeddedStore(tmp_path / "index")) as index:
        record = index.search("number")[0].record
        assert record.text == TEXTS[0]
        assert record.metadata["n"] == 0
        assert not any(name.startswith("_") for name in record.metadata)


def test_pickles_and_closing(embedding: TwinVecEmbedding, tmp_path: Path) -> None:
    store = TwinVecVectorStore(embedding, path=tmp_path / "index", fusion="rrf")
    store.add(nodes(2))
    copied = pickle.loads(pickle.dumps(store))
    assert (copied.client.count(), copied.fusion, copied.embedding == embedding) == (2, Fusion("rrf"), True)
    assert "index" in repr(store)
    assert json.loads(store.to_json())["class_name"] == "TwinVecVectorStore"
    copied.close()
    store.close()
    with pytest.raises(StoreClosedError):
        store.get_nodes()

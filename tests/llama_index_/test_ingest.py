"""Readers and documents into a store: only what has changed, and as LlamaIndex's own documents afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.readers.base import BaseReader
from llama_index.core.readers.string_iterable import StringIterableReader
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_.samples import by
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from twinvec.errors import ConfigurationError
from twinvec_stores import IngestReport

LONG = " ".join(f"sentence number {i} about {'apples' if i % 2 else 'figs'}." for i in range(40))


class Lazily(BaseReader):
    """Reads documents one by one."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> Iterable[Document]:
        return (Document(id_=id, text=text, metadata={"kind": "fruit"}) for id, text in self.texts.items())


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.new, report.changed, report.unchanged, report.deleted


@pytest.mark.parametrize("through_async", [False, True])
def test_a_reader_is_ingested_again_and_only_what_changed_is_done(
    store: TwinVecVectorStore, through_async: bool
) -> None:
    def run(texts: dict[str, str], **options: Any) -> tuple[int, int, int, int]:
        if through_async:
            return counts(asyncio.run(store.aingest(Lazily(texts), **options)))
        return counts(store.ingest(Lazily(texts), **options))

    assert run({"a": "apple", "b": "fig", "c": "plum"}) == (3, 0, 0, 0)
    assert run({"a": "apple", "b": "a fig"}) == (0, 1, 1, 0)
    assert run({"a": "apple", "b": "a fig"}, prune=True) == (0, 0, 2, 1)
    assert sorted(node.node_id for node in store.get_nodes()) == ["a", "b"]


def test_a_folder_keeps_its_names_and_metadata(store: TwinVecVectorStore, tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(f"the file {name}")
    assert store.ingest(SimpleDirectoryReader(str(tmp_path))).new == 2
    assert counts(store.ingest(SimpleDirectoryReader(str(tmp_path)), prune=True)) == (0, 0, 2, 0)
    nodes = store.get_nodes(filters=by("file_name", "two.txt"))
    assert [node.get_content() for node in nodes] == ["the file two.txt"]
    assert nodes[0].node_id == str(tmp_path / "two.txt")


def test_other_readers_and_plain_documents(store: TwinVecVectorStore) -> None:
    documents = StringIterableReader().load_data(["one", "two"])
    assert store.ingest(documents).new == 2
    report = store.ingest([Document(id_="x", text="three", metadata={"bad": object()}), Document(id_="y", text="four")])
    assert (report.new, report.failed) == (1, 1)
    assert "bad" in report.failures[0].reason


def test_chunks_belong_to_their_document(store: TwinVecVectorStore) -> None:
    assert store.ingest([Document(id_="doc", text=LONG), Document(id_="short", text="plums")], chunk_tokens=40).new == 2
    nodes = store.get_nodes()
    assert {node.ref_doc_id for node in nodes} == {"doc", "short"}
    assert all("ref_doc_id" not in node.metadata for node in nodes)
    assert len(nodes) > 4
    query = VectorStoreQuery(query_str="figs", doc_ids=["short"], similarity_top_k=10)
    assert [node.get_content() for node in store.query(query).nodes or []] == ["plums"]
    found = HybridRetriever(store, group_by="document", similarity_top_k=5).retrieve("figs")
    assert sorted(node.node.ref_doc_id or "" for node in found) == ["doc", "short"]
    VectorStoreIndex.from_vector_store(store, embed_model=store.embedding).delete_ref_doc("doc")
    assert [node.ref_doc_id for node in store.get_nodes()] == ["short"]


def test_pruning_leaves_nodes_alone_that_an_index_has_put_there(store: TwinVecVectorStore) -> None:
    VectorStoreIndex.from_vector_store(store, embed_model=store.embedding).insert(Document(id_="own", text="a pear"))
    store.ingest(Lazily({"a": "apple", "b": "fig"}))
    assert store.ingest(Lazily({"a": "apple"}), prune=True).deleted == 1
    assert sorted(node.ref_doc_id or "" for node in store.get_nodes()) == ["a", "own"]


def test_a_view_ingests_into_its_scope(store: TwinVecVectorStore) -> None:
    view = store.scoped({"tenant": "a"})
    view.ingest(Lazily({"a": "apple", "b": "fig"}))
    store.ingest(Lazily({"c": "plum"}), prune=False)
    assert counts(view.ingest(Lazily({"a": "apple"}), prune=True)) == (0, 0, 1, 1)
    assert sorted(node.node_id for node in store.get_nodes()) == ["a", "c"]


def test_it_does_not_go_around_an_overridden_add(embedding: TwinVecEmbedding) -> None:
    class Guarded(TwinVecVectorStore):
        def add(self, nodes: Any, **kwargs: Any) -> list[str]:
            return []

    made: Any = Guarded
    with made(embedding) as store, pytest.raises(ConfigurationError, match="overrides add"):
        store.ingest(Lazily({"a": "apple"}))


# --- the text around a node


def chain(n: int, *, ends: bool) -> list[BaseNode]:
    from llama_index.core.node_parser import SentenceSplitter

    if not ends:
        return []
    splitter = SentenceSplitter(chunk_size=30, chunk_overlap=10, tokenizer=str.split, include_metadata=False)
    return splitter.get_nodes_from_documents([Document(id_="doc", text=LONG)])[:n]


@pytest.mark.parametrize("through_async", [False, True])
def test_neighbours_of_a_node_are_its_window(store: TwinVecVectorStore, through_async: bool) -> None:
    nodes = chain(99, ends=True)
    assert len(nodes) > 5
    store.add(nodes)
    for expand in (1, 2):
        retriever = HybridRetriever(store, similarity_top_k=100, expand=expand)
        found = asyncio.run(retriever.aretrieve("figs")) if through_async else retriever.retrieve("figs")
        assert len(found) == len(nodes)
        for each in found:
            i = [node.node_id for node in nodes].index(each.node_id)
            near: list[Any] = nodes[max(i - expand, 0) : i + expand + 1]
            assert each.node.metadata["window"] == LONG[near[0].start_char_idx : near[-1].end_char_idx]
            assert each.node.get_content() == nodes[i].get_content()
            assert "window" not in each.node.get_content("llm")  # type: ignore[arg-type]


def test_neighbours_of_an_ingested_chunk_are_its_window(store: TwinVecVectorStore) -> None:
    store.ingest([Document(id_="doc", text=LONG)], chunk_tokens=40, overlap_tokens=8)
    for each in HybridRetriever(store, similarity_top_k=3, expand=1).retrieve("figs"):
        window = each.node.metadata["window"]
        assert each.node.get_content() in window
        assert len(window) > len(each.node.get_content())
        assert window in LONG


def test_a_node_without_neighbours_is_its_own_window(store: TwinVecVectorStore) -> None:
    store.add([TextNode(text="alone")])
    assert HybridRetriever(store, expand=2).retrieve("alone")[0].node.metadata["window"] == "alone"


@pytest.mark.parametrize("by_field", ["document", "n"])
def test_groups_are_the_best_of_each(store: TwinVecVectorStore, by_field: str) -> None:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo

    texts = [f"{word} {i}" for i in range(4) for word in ("apple pie", "fig tart", "a pear", "the world")]
    store.add(
        [
            TextNode(
                id_=f"n{i:02}",
                text=text,
                metadata={"n": i % 4},
                excluded_embed_metadata_keys=["n"],
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{i % 4}")},
            )
            for i, text in enumerate(texts)
        ]
    )
    everything = HybridRetriever(store, similarity_top_k=16, explain=False).retrieve("apple tart")
    best: dict[Any, list[str]] = {}
    for each in everything:
        best.setdefault(each.node.metadata["n"], []).append(each.node_id)
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    for size in (1, 2):
        expected = [id for ids in list(best.values())[:3] for id in ids[:size]]
        grouped: dict[str, Any] = {"group_by": by_field, "group_size": size}
        assert [n.node_id for n in HybridRetriever(store, similarity_top_k=3, **grouped).retrieve("apple tart")] == (
            expected
        )
        own = index.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid", vector_store_kwargs=grouped)
        assert [n.node_id for n in own.retrieve("apple tart")] == expected

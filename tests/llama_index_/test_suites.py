"""What LlamaIndex's own test suites expect of its Simple, Qdrant, Milvus and Postgres stores, asked of ours.

The facts of those suites (which nodes, which query, which answer), with SimpleVectorStore beside ours wherever it can
answer. What is different on purpose is in DIFFERENT, and in docs/llama-index.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, IndexNode, NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode as Mode

from llama_index_.conftest import local_clients
from llama_index_twinvec import TwinVecVectorStore
from stores import milvus, postgres
from twinvec.errors import ConfigurationError, InvalidRecordError, TwinVecError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Local mode performs exact:UserWarning", "ignore:Payload indexes have no effect:UserWarning"
)
NODES: dict[str, tuple[list[float], dict[str, Any]]] = {
    "A": ([1.0, 0.0], {"weight": 1.0, "rank": "a", "quality": ["medium", "high"], "identifier": "6FTR78Yun", "key": 1}),
    "B": ([0.0, 1.0], {"weight": 2.0, "rank": "c", "quality": ["medium"], "identifier": "6FTR78Ygl", "key": 2}),
    "C": ([1.0, 1.0], {"weight": 3.0, "rank": "c", "quality": ["low", "high"], "identifier": "6FTR78Ztl", "key": "3"}),
    "D": ([0.5, 1.0], {"rank": "", "quality": []}),
}


class Vectors(BaseEmbedding):
    """The vectors that the suites write down, by text."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return NODES[text][0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [1.0, 1.0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return [1.0, 1.0]


def nodes() -> list[BaseNode]:
    return [
        TextNode(
            id_=id,
            text=id,
            embedding=list(vector),
            metadata=dict(metadata),
            excluded_embed_metadata_keys=list(metadata),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"test-{id}")},
        )
        for id, (vector, metadata) in NODES.items()
    ]


@pytest.fixture(params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    place: dict[str, Any] = {}
    if request.param == "qdrant":
        client, aclient = local_clients()
        place = {"client": client, "aclient": aclient, "collection": "test"}
    elif request.param == "postgres":
        place = {"url": postgres.url(), "collection": postgres.new_name()}
    elif request.param == "milvus":
        place = {"url": milvus.url(), "collection": milvus.new_name()}
    elif request.param == "embedded":
        place = {"path": tmp_path / "index"}
    with TwinVecVectorStore(Vectors(), **place) as made:
        made.add(nodes())
        yield made


@pytest.fixture
def simple() -> SimpleVectorStore:
    made = SimpleVectorStore()
    made.add(nodes())
    return made


def where(*parts: tuple[str, str, Any], condition: FilterCondition = FilterCondition.AND) -> MetadataFilters:
    made = [MetadataFilter(key=key, operator=FilterOperator(operator), value=value) for key, operator, value in parts]
    return MetadataFilters(filters=list(made), condition=condition)


QUERIES: dict[str, dict[str, Any]] = {
    "everything by similarity": {},
    "top_k": {"similarity_top_k": 2},
    "several match": {"filters": where(("rank", "==", "c"))},
    "several match, one is wanted": {"filters": where(("rank", "==", "c")), "similarity_top_k": 1},
    "both filters": {"filters": where(("rank", "==", "c"), ("weight", "==", 2.0))},
    "contradiction": {"filters": where(("weight", "==", 2), ("weight", "==", 3))},
    "unknown field": {"filters": where(("unknown", "==", "c"))},
    "or": {"filters": where(("rank", "==", "c"), ("weight", "==", 1.0), condition=FilterCondition.OR)},
    "not": {"filters": where(("rank", "==", "a"), condition=FilterCondition.NOT)},
    **{
        f"{key} {operator} {value}": {"filters": where((key, operator, value))}
        for key, operator, value in (
            ("weight", "==", 1.0),
            ("weight", "!=", 1.0),
            ("weight", ">", 1.5),
            ("weight", ">=", 1.0),
            ("weight", "<", 1.1),
            ("weight", "<=", 1.0),
            ("rank", "in", ["a", "c"]),
            ("rank", "nin", ["c"]),
            ("key", "in", [1, 2]),
            ("key", "nin", [1, 2]),
            ("key", "in", ["3"]),
            ("quality", "contains", "high"),
            ("quality", "any", ["high", "low"]),
            ("quality", "all", ["medium", "high"]),
            ("identifier", "text_match", "6FTR78Y"),
            ("identifier", "text_match_insensitive", "6ftr78y"),
            ("rank", "is_empty", None),
            ("quality", "is_empty", None),
            ("weight", "is_empty", None),
        )
    },
    "node_ids": {"node_ids": ["A", "C"]},
    "node_ids and filters": {"node_ids": ["C"], "filters": where(("rank", "==", "c"))},
    "mmr": {"mode": Mode.MMR, "mmr_threshold": 0.7, "similarity_top_k": 2},
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_finds_what_llamaindexs_own_store_finds(
    store: TwinVecVectorStore, simple: SimpleVectorStore, name: str
) -> None:
    query = {"query_embedding": [1.0, 1.0], "similarity_top_k": 4, **QUERIES[name]}
    more = {"mmr_threshold": query["mmr_threshold"]} if name == "mmr" else {}  # where that store reads it
    expected = simple.query(VectorStoreQuery(**query), **more)
    for found in (store.query(VectorStoreQuery(**query)), asyncio.run(store.aquery(VectorStoreQuery(**query)))):
        assert found.ids == expected.ids
        assert name == "mmr" or found.similarities == pytest.approx(expected.similarities, abs=1e-6)


@pytest.mark.parametrize(("doc_ids", "expected"), [(None, "ABCD"), ([], ""), (["missing"], ""), (["test-A"], "A")])
@pytest.mark.parametrize("mode", [Mode.DEFAULT, Mode.MMR])
def test_a_retriever_is_kept_to_its_documents(
    store: TwinVecVectorStore, doc_ids: list[str] | None, expected: str, mode: Mode
) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    retriever = index.as_retriever(doc_ids=doc_ids, similarity_top_k=10, vector_store_query_mode=mode)
    found = retriever.retrieve(QueryBundle(query_str="test", embedding=[1.0, 0.0]))
    assert {each.node_id for each in found} == set(expected)


@pytest.mark.parametrize("through_async", [False, True])
def test_getting_deleting_and_clearing(store: TwinVecVectorStore, through_async: bool) -> None:
    def do(name: str, *arguments: Any, **options: Any) -> Any:
        if not through_async:
            return getattr(store, name)(*arguments, **options)
        return asyncio.run(getattr(store, f"a{name}")(*arguments, **options))

    assert all(node.embedding is not None for node in do("get_nodes", node_ids=["A", "B"]))
    do("delete", "test-B")
    assert store.query(VectorStoreQuery(query_embedding=[1.0, 1.0], similarity_top_k=2)).ids == ["C", "D"]
    do("delete_nodes", node_ids=["A"])
    assert [node.node_id for node in do("get_nodes", node_ids=["A", "B", "C"])] == ["C"]
    do("delete_nodes", filters=where(("rank", "==", "c")))
    assert [node.node_id for node in do("get_nodes")] == ["D"]
    do("clear")
    assert do("get_nodes", node_ids=["D"]) == []


def test_nodes_that_match_without_any_query(store: TwinVecVectorStore) -> None:
    """As Chroma's store answers filters alone; nothing is embedded, and nodes have no score."""
    query = VectorStoreQuery(filters=where(("rank", "==", "c")), similarity_top_k=5)
    for found in (store.query(query), asyncio.run(store.aquery(query))):
        assert sorted(found.ids or []) == ["B", "C"]
        assert found.similarities is None
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    alone = index.as_retriever(filters=where(("rank", "==", "a"))).retrieve("")
    assert [(node.node_id, node.score) for node in alone] == [("A", None)]
    with pytest.raises(ConfigurationError, match="needs query_str"):
        store.query(VectorStoreQuery())


DIFFERENT: dict[str, tuple[Any, type[Exception] | None, str]] = {
    "a query of zeros has no direction": (
        lambda s: s.query(VectorStoreQuery(query_embedding=[0.0, 0.0])),
        InvalidRecordError,
        "zero",
    ),
    "learned modes": (
        lambda s: s.query(VectorStoreQuery(query_embedding=[1.0, 1.0], mode=Mode.SVM)),
        ConfigurationError,
        "DEFAULT, SPARSE, HYBRID or MMR",
    ),
    "unknown keyword arguments of add": (lambda s: s.add(nodes(), index_id="42"), TypeError, "index_id"),
    "shards are the server's": (lambda s: s.delete("test-A", shard_identifier=3), TypeError, "shard_identifier"),
    "IN wants a list": (
        lambda s: s.get_nodes(filters=where(("rank", "in", "ac"))),
        TwinVecError,
        "needs a list",
    ),
    "a number has no parts to match": (
        lambda s: s.get_nodes(filters=where(("weight", "text_match", "1"))) == [],
        None,
        "",
    ),
    "a cleared store is there still": (lambda s: (s.clear(), s.get_nodes())[1] == [], None, ""),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_different_on_purpose(store: TwinVecVectorStore, name: str) -> None:
    act, error, message = DIFFERENT[name]
    if error is None:
        assert act(store)
    else:
        with pytest.raises(error, match=message):
            act(store)


POSTGRES: dict[str, tuple[str, float, dict[str, Any]]] = {  # text, the first number of its vector, metadata
    "aaa": ("lorem ipsum", 0.1, {"test_num": 1}),
    "bbb": ("dolor sit amet", 1.0, {"test_key": "test_value"}),
    "ccc": ("The quick brown fox jumped over the lazy dog.", 5.0, {}),
    "ddd": ("The fox and the hound", 10.0, {"test_key": "test_value"}),
}


class Sampled(Vectors):
    """Vectors [number, 1], as Postgres' suite writes them down."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return next(([number, 1.0] for known, number, _ in POSTGRES.values() if known == text), [5.0, 1.0])


@pytest.fixture
def hybrid() -> Iterator[TwinVecVectorStore]:
    with TwinVecVectorStore(Sampled(), sparse="bm25") as made:
        made.add(
            [
                TextNode(
                    id_=id,
                    text=text,
                    embedding=[number, 1.0],
                    metadata=metadata,
                    excluded_embed_metadata_keys=[*metadata],
                )
                for id, (text, number, metadata) in POSTGRES.items()
            ]
        )
        made.add([IndexNode(id_="ref", text="quick brown fox", index_id="aaa", embedding=[5.0, 1.0])])
        yield made


def query(store: TwinVecVectorStore, **asked: Any) -> list[str]:
    given = VectorStoreQuery(**{"query_embedding": [0.1, 1.0], **asked})
    found, other = store.query(given), asyncio.run(store.aquery(given))
    assert found.ids == other.ids
    return found.ids or []


@pytest.mark.parametrize("text", ["fox", "who is the fox?"])
def test_words_are_found_in_a_sentence_too(hybrid: TwinVecVectorStore, text: str) -> None:
    found = query(hybrid, query_str=text, mode=Mode.SPARSE, similarity_top_k=5)
    assert set(found[:3]) == {"ccc", "ddd", "ref"}
    assert len(query(hybrid, query_str=text, mode=Mode.SPARSE, sparse_top_k=2)) == 2


def test_hybrid_takes_part_of_both_halves(hybrid: TwinVecVectorStore) -> None:
    both = {"query_str": "hound", "mode": Mode.HYBRID}
    assert query(hybrid, **both, similarity_top_k=1, sparse_top_k=1, hybrid_top_k=2) == ["aaa", "ddd"]
    assert set(query(hybrid, **both, similarity_top_k=2, sparse_top_k=1, hybrid_top_k=3)) == {"aaa", "bbb", "ddd"}
    filters = where(("test_key", "==", "test_value"))
    assert set(query(hybrid, **both, similarity_top_k=10, filters=filters)) == {"bbb", "ddd"}
    with pytest.raises(ConfigurationError, match="needs query_str"):
        hybrid.query(VectorStoreQuery(query_embedding=[0.1, 1.0], mode=Mode.HYBRID))


def test_an_index_node_stays_one(hybrid: TwinVecVectorStore) -> None:
    [found] = hybrid.query(VectorStoreQuery(query_embedding=[5.0, 1.0], node_ids=["ref"])).nodes or []
    assert isinstance(found, IndexNode)
    assert found.index_id == "aaa"


@pytest.mark.parametrize(
    ("node_ids", "filters", "expected"),
    [
        (["aaa", "bbb"], None, ["aaa", "bbb"]),
        (None, where(("test_num", "==", 1)), ["aaa"]),
        (["bbb", "ccc"], where(("test_key", "==", "test_value")), ["bbb"]),
        (["ccc"], where(("test_key", "==", "test_value")), []),
        (["aaa", "bbb"], where(("test_num", "==", 999)), []),
        (["asdf"], None, []),
        (["bbb"], MetadataFilters(filters=[]), ["bbb"]),
        (["bbb"], MetadataFilters(filters=[MetadataFilters(filters=[])]), ["bbb"]),
        (None, where(("missing", "!=", "a"), ("test_num", "==", 1)), ["aaa"]),
        (["aaa", "bbb"], where(("missing", "nin", ["a"])), ["aaa", "bbb"]),
        (None, MetadataFilters(filters=[MetadataFilter(key="test_num", value=1)], condition=None), ["aaa"]),
    ],
)
@pytest.mark.parametrize("delete", [False, True])
def test_ids_and_filters_together(
    hybrid: TwinVecVectorStore, node_ids: list[str], filters: MetadataFilters, expected: list[str], delete: bool
) -> None:
    if not delete:
        assert sorted(node.node_id for node in hybrid.get_nodes(node_ids, filters)) == expected
    else:
        hybrid.delete_nodes(node_ids, filters)
        assert {node.node_id for node in hybrid.get_nodes()} == {*POSTGRES, "ref"} - set(expected)


@pytest.mark.parametrize(
    ("threshold", "given", "expected"),
    [
        (0.0, {}, "ac"),
        (0.25, {}, "ac"),
        (1.0, {}, "ab"),
        (None, {}, "ab"),
        (None, {"mmr_threshold": 0.0}, "ac"),
        (1.0, {"mmr_threshold": 0.0}, "ac"),
        (0.0, {"mmr_threshold": 1.0}, "ab"),
    ],
)
def test_where_the_threshold_of_mmr_comes_from(threshold: float | None, given: dict[str, float], expected: str) -> None:
    same = {"a": "A", "b": "A", "c": "B"}
    with TwinVecVectorStore(Vectors()) as store:
        store.add([TextNode(id_=id, text=text, embedding=NODES[text][0]) for id, text in same.items()])
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=2, mode=Mode.MMR, mmr_threshold=threshold)
        assert "".join(store.query(query, **given).ids or []) == expected

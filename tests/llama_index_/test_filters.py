"""MetadataFilters in full: what matches is what LlamaIndex's own definition says, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from llama_index_.conftest import local_clients
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from llama_index_twinvec.filters import from_llama_index
from stores import milvus, postgres
from twinvec import Embedder
from twinvec.errors import FilterError
from twinvec_stores import And, QdrantStore, StoreConfig

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
METADATA: dict[str, dict[str, Any]] = {
    "a": {"year": 2020, "lang": "ru", "tags": ["x", "y"], "score": 0.5},
    "b": {"year": 2021, "lang": "en", "tags": ["y", "z"], "score": 1.5},
    "c": {"year": 2022, "lang": "en", "tags": [], "score": 2.5, "a.b": "dotted"},
    "d": {"year": 2023, "lang": "de", "tags": ["x"], "nested": {"deep": "inner"}},
    "e": {"lang": "ru", "note": None, "pages": [1, 2, 3], "blank": ""},
}
OPERATORS: list[tuple[str, str, Any]] = [
    ("lang", "==", "ru"),
    ("year", "==", 2021),
    ("score", "==", 2.5),
    ("year", "!=", 2021),
    ("lang", "!=", "en"),
    ("year", ">", 2021),
    ("year", ">=", 2021),
    ("score", "<", 1.5),
    ("score", "<=", 1.5),
    ("lang", "in", ["ru", "de"]),
    ("year", "in", [2020, 2023]),
    ("lang", "nin", ["ru", "de"]),
    ("year", "nin", [2020]),
    ("tags", "contains", "x"),
    ("pages", "contains", 2),
    ("tags", "any", ["z", "x"]),
    ("tags", "all", ["x", "y"]),
    ("lang", "text_match", "r"),
    ("lang", "text_match", "R"),
    ("lang", "text_match_insensitive", "R"),
    ("lang", "text_match_insensitive", "x"),
    ("tags", "is_empty", None),
    ("note", "is_empty", None),
    ("blank", "is_empty", None),
    ("a.b", "==", "dotted"),
    ("a.b", "!=", "dotted"),
    ("a.b", "in", ["dotted", "other"]),
    ("a.b", "is_empty", None),
    ("missing", "==", "x"),
    ("missing", "nin", ["x"]),
]


@pytest.fixture(
    scope="module", params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)]
)
def store(
    request: pytest.FixtureRequest, gte: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwinVecVectorStore]:
    embedding = TwinVecEmbedding(embedder=gte)
    options: dict[str, Any] = {}
    if request.param == "qdrant":
        client, async_client = local_clients()
        config = StoreConfig.for_embedder(gte)
        inner = QdrantStore(client=client, async_client=async_client, collection="nodes", config=config)
        options["store"] = inner
    elif request.param == "postgres":
        options |= {"url": postgres.url(), "collection": postgres.new_name(), "fields": {"year": "integer"}}
    elif request.param == "milvus":
        options |= {"url": milvus.url(), "collection": milvus.new_name(), "fields": {"year": "integer"}}
    elif request.param == "embedded":
        folder: Path = tmp_path_factory.mktemp("filters") / "index"
        options |= {"path": folder, "fields": {"year": "integer", "lang": "keyword", "tags": "keyword"}}
    with TwinVecVectorStore(embedding, **options) as made:
        made.add([TextNode(id_=id, text=f"text {id}", metadata=metadata) for id, metadata in METADATA.items()])
        yield made


def matching(store: TwinVecVectorStore, filters: MetadataFilters) -> list[str]:
    return sorted(node.node_id for node in store.get_nodes(filters=filters))


def one(key: str, operator: str, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def defined(filters: MetadataFilters) -> list[str]:
    """Return what LlamaIndex's own function, which its SimpleVectorStore uses, lets through."""
    return sorted(filter(build_metadata_filter_fn(METADATA.__getitem__, filters), METADATA))


@pytest.mark.parametrize(("key", "operator", "value"), OPERATORS)
def test_operators(store: TwinVecVectorStore, key: str, operator: str, value: Any) -> None:
    filters = MetadataFilters(filters=[one(key, operator, value)])
    assert matching(store, filters) == defined(filters)


@pytest.mark.parametrize("condition", FilterCondition)
def test_conditions(store: TwinVecVectorStore, condition: FilterCondition) -> None:
    for parts in (
        [one("lang", "==", "en"), one("year", ">", 2021)],
        [one("tags", "contains", "x"), one("lang", "nin", ["de"]), one("year", "<=", 2022)],
        [],
    ):
        filters = MetadataFilters(filters=list(parts), condition=condition)
        assert matching(store, filters) == defined(filters)


def test_nested_conditions(store: TwinVecVectorStore) -> None:
    """Which LlamaIndex's own function refuses."""
    english_or_late = MetadataFilters(
        filters=[one("lang", "==", "en"), one("year", ">=", 2023)], condition=FilterCondition.OR
    )
    not_z = MetadataFilters(filters=[one("tags", "contains", "z")], condition=FilterCondition.NOT)
    both = MetadataFilters(filters=[english_or_late, not_z])
    assert matching(store, both) == ["c", "d"]
    neither = MetadataFilters(filters=[both, one("year", "==", 2020)], condition=FilterCondition.NOT)
    assert matching(store, neither) == ["b", "e"]
    none_given = MetadataFilters(filters=[one("lang", "==", "ru")], condition=None)
    assert matching(store, none_given) == ["a", "e"]


def test_paths_into_nested_objects(store: TwinVecVectorStore) -> None:
    assert matching(store, MetadataFilters(filters=[one("nested.deep", "==", "inner")])) == ["d"]
    assert matching(store, MetadataFilters(filters=[one("nested.deep", "!=", "inner")])) == ["a", "b", "c", "e"]


def test_no_filters_match_everything() -> None:
    assert from_llama_index(MetadataFilters(filters=[], condition=FilterCondition.OR)) == And()


def test_dates_are_compared_as_moments(gte: Embedder) -> None:
    days = ["2024-12-31T23:30:00-01:00", "2025-01-01", "2024-12-31"]
    with TwinVecVectorStore(TwinVecEmbedding(embedder=gte)) as store:
        store.add([TextNode(id_=str(n), text=f"day {n}", metadata={"day": day}) for n, day in enumerate(days)])
        assert matching(store, MetadataFilters(filters=[one("day", ">=", "2025-01-01")])) == ["0", "1"]


@pytest.mark.parametrize(
    ("key", "operator", "value", "message"),
    [
        ("year", ">", "last year", "date"),
        ("lang", "in", "ru", "needs a list"),
        ("lang", "==", None, "use Exists"),
        ("tags", "==", ["x"], "cannot compare"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(key: str, operator: str, value: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        from_llama_index(MetadataFilters(filters=[one(key, operator, value)]))

"""Nodes to fill a store with, and how to ask it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode as Mode

from llama_index_twinvec import TwinVecVectorStore

WORDS = ["sorting", "lists", "capital", "Russia", "China", "python", "hello", "world"]
TEXTS = [f"number {i} {WORDS[i % 8]} {WORDS[i // 8]} {WORDS[(3 * i) % 8]}" for i in range(40)]
QUERY = "sorting the capital of python"


def nodes(count: int = 40) -> list[BaseNode]:
    return [
        TextNode(
            id_=f"n{i:02}",
            text=TEXTS[i],
            metadata={"n": i, "even": i % 2 == 0, "tags": [WORDS[i % 8]]},
            excluded_embed_metadata_keys=["n", "even", "tags"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{i // 10}")},
        )
        for i in range(count)
    ]


def ask(store: BasePydanticVectorStore, mode: Mode = Mode.DEFAULT, **options: Any) -> VectorStoreQueryResult:
    """Query as VectorIndexRetriever does, sync and async, which have to agree."""
    more = options.pop("more", {})
    fields = {"query_str": QUERY, "similarity_top_k": 5, "mode": mode, **options}
    if mode not in (Mode.SPARSE, Mode.TEXT_SEARCH) and isinstance(store, TwinVecVectorStore):
        fields.setdefault("query_embedding", store.embedding.get_query_embedding(QUERY))
    result = store.query(VectorStoreQuery(**fields), **more)
    again = asyncio.run(store.aquery(VectorStoreQuery(**fields), **more))
    assert (result.ids, result.nodes) == (again.ids, again.nodes)
    assert result.similarities == pytest.approx(again.similarities)
    return result


def by(key: str, value: Any, operator: str = "==") -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter.from_dict({"key": key, "value": value, "operator": operator})])

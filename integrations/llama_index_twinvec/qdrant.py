"""Reading collections written by LlamaIndex's QdrantVectorStore as nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.utils import legacy_metadata_dict_to_node

from llama_index_twinvec.nodes import CONTENT, node_of
from twinvec.errors import InvalidRecordError, StoreMismatchError, StoreNotFoundError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_PAGE = 1000
_DENSE = "text-dense"  # the name used by QdrantVectorStore, except in older versions


def pages_of(client: QdrantClient, collection_name: str, dim: int, text_key: str) -> Iterator[list[BaseNode]]:
    """Yield all nodes of a collection with their dense vectors.

    Raises:
        StoreNotFoundError: there is no such collection.
        StoreMismatchError: its vectors cannot come from this model.
        InvalidRecordError: a point was not written by LlamaIndex.
    """
    if not client.collection_exists(collection_name):
        raise StoreNotFoundError(f"there is no collection {collection_name}")
    name, offset = _dense_name(client, collection_name, dim), None
    while True:
        points, offset = client.scroll(
            collection_name, limit=_PAGE, offset=offset, with_payload=True, with_vectors=[name] if name else True
        )
        yield [_node(point, name, text_key) for point in points]
        if offset is None:
            return


def _dense_name(client: QdrantClient, collection_name: str, dim: int) -> str:
    """Return the name of the dense vectors; "" if they have no name."""
    vectors: Any = client.get_collection(collection_name).config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors}
    where = f"collection {collection_name}"
    name = _DENSE if _DENSE in named else next(iter(named), "")
    if not named or vectors is None:
        raise StoreMismatchError(f"{where} has no dense vectors: put its texts into a new store")
    if name != _DENSE and len(named) > 1:
        raise StoreMismatchError(f"{where} has several dense vectors, none of them {_DENSE}: {', '.join(named)}")
    if named[name].multivector_config is not None:
        raise StoreMismatchError(f"{where} has several vectors per node, {name or 'unnamed'}: TwinVec stores one")
    if named[name].size != dim:
        raise StoreMismatchError(
            f"{where} has vectors of {named[name].size} dimensions, the embedding {dim}: they belong to another model"
        )
    return name


def _node(point: Any, name: str, text_key: str) -> BaseNode:
    payload = dict(point.payload or {})
    if CONTENT in payload:
        node = node_of(payload)
    elif isinstance(
        payload.get(text_key), str
    ):  # written by its first versions; also how it reads what others have written
        metadata, info, relationships = legacy_metadata_dict_to_node(payload, text_key=text_key)
        ends = {"start_char_idx": info.get("start"), "end_char_idx": info.get("end")}
        node = TextNode(
            id_=str(point.id), text=payload[text_key], metadata=metadata, relationships=relationships, **ends
        )
    else:
        raise InvalidRecordError(
            f"it was not written by LlamaIndex: its payload has neither {CONTENT} nor {text_key!r}, see text_key=, but "
            f"{', '.join(sorted(payload)) or 'nothing'}",
            id=str(point.id),
        )
    vector = point.vector.get(name) if isinstance(point.vector, dict) else point.vector
    node.embedding = None if vector is None else [float(value) for value in vector]
    return node

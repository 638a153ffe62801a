"""LlamaIndex's nodes as records of a store, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.schema import BaseNode, Document, ImageDocument, MetadataMode, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from twinvec import SparseBatch
from twinvec.vectors import Float32
from twinvec_stores import Record, RecordBatch

REF_DOC_ID = "ref_doc_id"
_AT_ONCE = 1024  # nodes in one write
_CONTENT, _TYPE = "_node_content", "_node_type"
_DOCUMENTS: Mapping[str, type[Document]] = {  # which LlamaIndex's own function takes for a TextNode
    cls.class_name(): cls for cls in (Document, ImageDocument)
}


def slices(nodes: Sequence[BaseNode]) -> Iterator[Sequence[BaseNode]]:
    """Return nodes in parts that are written at once."""
    return (nodes[start : start + _AT_ONCE] for start in range(0, len(nodes), _AT_ONCE))


def embed_text(node: BaseNode) -> str:
    """Return what LlamaIndex embeds of a node: its text, with the metadata that is not excluded."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)


def to_batch(nodes: Sequence[BaseNode], texts: list[str], dense: Float32, sparse: SparseBatch | None) -> RecordBatch:
    """Return nodes as records, with their embedded texts and vectors.

    Metadata is for filters: flat, beside ``doc_id``, ``document_id`` and ``ref_doc_id``, as in LlamaIndex's other
    stores. The whole node, as LlamaIndex writes it down, is the provenance.
    """
    metadata = [node_to_metadata_dict(node) for node in nodes]
    provenance = [{name: columns.pop(name) for name in (_CONTENT, _TYPE)} for columns in metadata]
    return RecordBatch([node.node_id for node in nodes], texts, dense, sparse, metadata, provenance)


def to_node(record: Record) -> BaseNode:
    """Return a record as the node it was, with its dense row where that came along.

    A record that was not made from a node becomes a TextNode with its text and metadata.
    """
    provenance = dict(record.provenance)
    if _CONTENT not in provenance:
        node: BaseNode = TextNode(id_=record.id, text=record.text, metadata=dict(record.metadata))
    elif provenance.get(_TYPE) in _DOCUMENTS:
        node = _DOCUMENTS[provenance[_TYPE]].from_json(provenance[_CONTENT])
    else:
        node = metadata_dict_to_node(provenance)
    if record.dense is not None:
        node.embedding = record.dense.tolist()
    return node


def provenance_of(record: Record) -> dict[str, Any]:
    """Return where a record comes from, as far as TwinVec has ingested it."""
    return {name: value for name, value in record.provenance.items() if name not in (_CONTENT, _TYPE)}

"""LlamaIndex's nodes as records of a store, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from twinvec import SparseBatch
from twinvec.errors import InvalidRecordError
from twinvec.vectors import Float32
from twinvec_stores import Record, RecordBatch, Result, StoreConfig
from twinvec_stores.metadata import plain_metadata
from twinvec_stores.records import check_rows

REF_DOC_ID = "ref_doc_id"
_REFERENCES = {"doc_id", "document_id", REF_DOC_ID}  # of a node to its document
_AT_ONCE = 1024  # nodes per write
CONTENT, _TYPE = "_node_content", "_node_type"
_DOCUMENT = "document"  # the key by which twinvec_stores groups
_DOCUMENTS: Mapping[str, type[Document]] = {  # LlamaIndex's own function mistakes these for TextNodes
    cls.class_name(): cls for cls in (Document, ImageDocument)
}


def slices(nodes: Sequence[BaseNode]) -> Iterator[Sequence[BaseNode]]:
    """Yield nodes in parts that are written together.

    Raises:
        TypeError: this is not a list of nodes.
    """
    if isinstance(nodes, BaseNode | str):
        raise TypeError(f"add takes a list of nodes, not a {type(nodes).__name__}")
    for node in nodes:
        if not isinstance(node, BaseNode):
            raise TypeError(f"add takes LlamaIndex's nodes, not {type(node).__name__}: TextNode(text=...)")
    return (nodes[start : start + _AT_ONCE] for start in range(0, len(nodes), _AT_ONCE))


def embed_text(node: BaseNode) -> str:
    """Return the text that LlamaIndex embeds for a node: its text, with the metadata that is not excluded."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)


@dataclass(frozen=True)
class Columns:
    """The contents of nodes in a store, except their vectors.

    Metadata is for filters: flat, together with ``doc_id``, ``document_id`` and ``ref_doc_id``, as in LlamaIndex's
    other stores. The whole node, as serialised by LlamaIndex, is the provenance.
    """

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]
    provenance: list[dict[str, Any]]

    @classmethod
    def of(cls, nodes: Sequence[BaseNode], config: StoreConfig) -> Columns:
        """Read nodes.

        Raises:
            InvalidRecordError: a node cannot be stored; says which, and why.
        """
        texts = [embed_text(node) for node in nodes]
        columns = [node_to_metadata_dict(_plain(node)) for node in nodes]
        provenance = [{name: each.pop(name) for name in (CONTENT, _TYPE)} for each in columns]
        for node, origin in zip(nodes, provenance, strict=True):
            if node.ref_doc_id is not None:
                origin[_DOCUMENT] = node.ref_doc_id
        rows = check_rows([node.node_id for node in nodes], texts, columns, config)
        return cls(rows.ids, rows.texts, rows.metadata, provenance)

    def with_vectors(
        self, dense: Float32, sparse: SparseBatch | None, tokens: list[bytes] | None = None
    ) -> RecordBatch:
        """Return the nodes as records."""
        return RecordBatch(self.ids, self.texts, dense, sparse, self.metadata, self.provenance, tokens)


def _plain(node: BaseNode) -> BaseNode:
    """Return a node with metadata in plain JSON types, the only ones that LlamaIndex can serialise."""
    try:
        plain = plain_metadata(node.metadata)
    except InvalidRecordError as error:
        raise error.of(node.node_id) from None
    return node if plain == node.metadata else node.model_copy(update={"metadata": plain})


def to_node(record: Record) -> BaseNode:
    """Return the node from which a record was made, with its dense row if available.

    A record that was not made from a node becomes a TextNode with its text, metadata and document.
    """
    provenance = dict(record.provenance)
    if CONTENT not in provenance:
        metadata = dict(record.metadata)
        node: BaseNode = TextNode(id_=record.id, text=record.text)
        if isinstance(source := metadata.pop(REF_DOC_ID, provenance.get(_DOCUMENT)), str):
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=source)
        node.metadata = metadata
    else:
        node = node_of(provenance)
        _add_metadata(node, record.metadata)
    if record.dense is not None:
        node.embedding = record.dense.tolist()
    return node


def _add_metadata(node: BaseNode, metadata: Mapping[str, Any]) -> None:
    """Add what a record has beyond its node: a scope's fields, and changes made since; new fields stay out of texts."""
    for key in metadata.keys() - _REFERENCES:
        if key not in node.metadata:
            node.excluded_embed_metadata_keys.append(key)
            node.excluded_llm_metadata_keys.append(key)
        node.metadata[key] = metadata[key]


def node_of(written: Mapping[str, Any]) -> BaseNode:
    """Return the node as serialised by LlamaIndex."""
    if (document := _DOCUMENTS.get(written.get(_TYPE, ""))) is not None:
        return document.from_json(written[CONTENT])
    return metadata_dict_to_node(dict(written))


def explanation_of(result: Result) -> dict[str, Any]:
    """Return why a record was found, and its origin if it was ingested by TwinVec."""
    assert result.explanation is not None
    origin = result.record.provenance
    why = asdict(result.explanation)
    if result.fused_score is None:  # there was no reranking
        del why["rerank_score"], why["rerank_rank"]
    return why | ({"provenance": dict(origin)} if origin and CONTENT not in origin else {})

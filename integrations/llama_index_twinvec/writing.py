"""Nodes into a store: checked, embedded where they bring no vector, and written with their sparse half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode

from llama_index_twinvec.nodes import Columns, slices
from llama_index_twinvec.waiting import WaitingRows
from twinvec.errors import InvalidRecordError
from twinvec.flows import call
from twinvec.vectors import Float32
from twinvec_stores import HybridIndex

_SAME = 0.95  # cosine of two vectors that one model gives for one text, in whatever precision


async def write_nodes(
    nodes: Sequence[BaseNode], index: HybridIndex, embedding: BaseEmbedding, sparse_rows: WaitingRows
) -> None:
    """Write nodes, as a flow; all are checked before the first is embedded.

    Raises:
        InvalidRecordError: a node that cannot be stored, or has a vector of another model.
    """
    store = index.store
    for some, columns in [(some, Columns.of(some, store.config)) for some in slices(nodes)]:
        dense = await _dense(some, columns.texts, index, embedding, sparse_rows)
        wanted = sparse_rows.documents, sparse_rows.adocuments
        sparse = await call(*wanted, columns.texts) if store.config.sparse else None
        await call(store.upsert, store.aupsert, columns.with_vectors(dense, sparse))


async def _dense(
    nodes: Sequence[BaseNode],
    texts: list[str],
    index: HybridIndex,
    embedding: BaseEmbedding,
    sparse_rows: WaitingRows,
) -> Float32:
    """Return the nodes' dense rows, embedding those that bring none."""
    brought = {i: node.embedding for i, node in enumerate(nodes) if node.embedding is not None}
    dim = index.embedder.dim
    for i, row in brought.items():
        if len(row) != dim:
            raise _another_model(nodes[i], f"has {len(row)} dimensions, this store's model gives {dim}")
    if brought and texts[last := max(brought)] not in sparse_rows:  # a text that waits was embedded by ours
        given = np.array(brought[last], np.float32)
        if not await _is_of(embedding, (texts[last], nodes[last].get_content()), given):
            raise _another_model(nodes[last], f"is not one of this store's model, {index.embedder.spec.model}")
    rows = dict(brought)
    if lacking := [i for i in range(len(nodes)) if i not in brought]:
        embed = embedding.get_text_embedding_batch, embedding.aget_text_embedding_batch
        rows.update(zip(lacking, await call(*embed, [texts[i] for i in lacking]), strict=True))
    return np.array([rows[i] for i in range(len(nodes))], np.float32)


async def _is_of(embedding: BaseEmbedding, texts: Sequence[str], row: Float32) -> bool:
    """Return whether a row is a model's for one of these texts: LlamaIndex's graphs and memories leave metadata out.

    Embedded a moment ago, a text is mostly remembered.
    """
    for text in dict.fromkeys(texts):
        own = np.array(await call(embedding._get_text_embedding, embedding._aget_text_embedding, text))
        if float(own @ row) >= _SAME * float(np.linalg.norm(own) * np.linalg.norm(row)):
            return True
    return False


def _another_model(node: BaseNode, what: str) -> InvalidRecordError:
    return InvalidRecordError(
        f"its embedding {what}: give the index the same embed_model as the store", id=node.node_id, field="embedding"
    )

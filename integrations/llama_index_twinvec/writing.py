"""Writing nodes to a store: checked, embedded if they have no vector, and stored with their sparse half."""

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
from twinvec_stores.tokens import asking, kept_tokens

_SAME = 0.95  # minimum cosine of two vectors of one text by one model, in any precision


async def write_nodes(
    nodes: Sequence[BaseNode], index: HybridIndex, embedding: BaseEmbedding, sparse_rows: WaitingRows
) -> None:
    """Write nodes, as a flow; all are checked before the first is embedded.

    Raises:
        InvalidRecordError: a node cannot be stored, or has a vector of another model.
    """
    store = index.store
    for some, columns in [(some, Columns.of(some, store.config)) for some in slices(nodes)]:
        dense = await _dense(some, columns.texts, index, embedding, sparse_rows)
        wanted = sparse_rows.documents, sparse_rows.adocuments
        sparse = await call(*wanted, columns.texts) if store.config.sparse else None
        tokens = await _tokens(columns.texts, index)
        await call(store.upsert, store.aupsert, columns.with_vectors(dense, sparse, tokens))


async def _tokens(texts: list[str], index: HybridIndex) -> list[bytes] | None:
    """Return what the store keeps of the texts' tokens; LlamaIndex embeds the texts, and knows nothing of these."""
    pool, embedder = index.store.config.token_pool, index.embedder
    if pool is None:
        return None
    methods = embedder.embed_documents, embedder.aembed_documents
    batch = await call(*methods, texts, task=index.task, dense=False, sparse=False, **asking(pool))
    return kept_tokens(batch, pool)


async def _dense(
    nodes: Sequence[BaseNode],
    texts: list[str],
    index: HybridIndex,
    embedding: BaseEmbedding,
    sparse_rows: WaitingRows,
) -> Float32:
    """Return the nodes' dense rows, embedding nodes without one."""
    brought = {i: node.embedding for i, node in enumerate(nodes) if node.embedding is not None}
    dim = index.embedder.dim
    for i, row in brought.items():
        if len(row) != dim:
            raise _another_model(nodes[i], f"has {len(row)} dimensions, this store's model has {dim}")
    if brought and texts[last := max(brought)] not in sparse_rows:  # a waiting text was embedded by our model
        given = np.array(brought[last], np.float32)
        if not await _is_of(embedding, (texts[last], nodes[last].get_content()), given):
            raise _another_model(nodes[last], f"does not come from this store's model, {index.embedder.spec.model}")
    rows = dict(brought)
    if lacking := [i for i in range(len(nodes)) if i not in brought]:
        embed = embedding.get_text_embedding_batch, embedding.aget_text_embedding_batch
        rows.update(zip(lacking, await call(*embed, [texts[i] for i in lacking]), strict=True))
    return np.array([rows[i] for i in range(len(nodes))], np.float32)


async def _is_of(embedding: BaseEmbedding, texts: Sequence[str], row: Float32) -> bool:
    """Return whether a row is the model's for one of these texts: LlamaIndex's graphs and memories leave metadata out.

    A text embedded a moment ago is usually still in the memo.
    """
    for text in dict.fromkeys(texts):
        own = np.array(await call(embedding._get_text_embedding, embedding._aget_text_embedding, text))
        if float(own @ row) >= _SAME * float(np.linalg.norm(own) * np.linalg.norm(row)):
            return True
    return False


def _another_model(node: BaseNode, what: str) -> InvalidRecordError:
    return InvalidRecordError(
        f"its embedding {what}: pass the index the same embed_model as the store", id=node.node_id, field="embedding"
    )

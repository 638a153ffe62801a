"""The sparse half with langchain-milvus's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_twinvec.base import TwinVecSparseModel
from twinvec import SparseBatch
from twinvec.flows import awaiting, blocking
from twinvec.overriding import heard

if TYPE_CHECKING:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
else:
    try:
        from langchain_milvus.utils.sparse import BaseSparseEmbedding
    except ImportError:
        BaseSparseEmbedding = object


class TwinVecMilvusSparseEmbeddings(TwinVecSparseModel, BaseSparseEmbedding):
    """Sparse vectors for ``Milvus(embedding_function=[dense, sparse])``; created by ``embeddings.sparse("milvus")``.

    Rows are ``{key: weight}``.
    """

    @blocking
    async def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Return one sparse row per document."""
        return await self._documents(texts, SparseBatch.to_dicts)

    aembed_documents = heard(awaiting(embed_documents))

    @blocking
    async def embed_query(self, query: str) -> dict[int, float]:
        """Return the sparse row of a query."""
        return await self._query(query, SparseBatch.to_dicts)

    aembed_query = heard(awaiting(embed_query))

"""The sparse half with langchain-milvus's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_twinvec.base import TwinVecSparseModel
from twinvec import SparseBatch
from twinvec.flows import block, wait
from twinvec.overriding import twin_of

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

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Return one sparse row per document."""
        return block(self._documents(texts, SparseBatch.to_dicts))

    def embed_query(self, query: str) -> dict[int, float]:
        """Return the sparse row of a query."""
        return block(self._query(query, SparseBatch.to_dicts))

    @twin_of("embed_documents")
    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """See ``embed_documents``."""
        return await wait(self._documents(texts, SparseBatch.to_dicts))

    @twin_of("embed_query")
    async def aembed_query(self, query: str) -> dict[int, float]:
        """See ``embed_query``."""
        return await wait(self._query(query, SparseBatch.to_dicts))

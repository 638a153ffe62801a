"""The sparse half with langchain-qdrant's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_twinvec.base import TwinVecSparseModel
from twinvec import SparseBatch
from twinvec.flows import awaiting, blocking
from twinvec.overriding import heard

if TYPE_CHECKING:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
else:
    try:
        from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
    except ImportError:
        from pydantic import BaseModel

        SparseEmbeddings = object

        class SparseVector(BaseModel, extra="forbid"):
            """Replaces langchain-qdrant's class if that is not installed."""

            indices: list[int]
            values: list[float]


class TwinVecSparseEmbeddings(TwinVecSparseModel, SparseEmbeddings):
    """Sparse vectors for ``QdrantVectorStore(sparse_embedding=...)``; created by ``TwinVecEmbeddings.sparse``.

    Indices are unique and never special tokens. With ``sparse="bm25"`` the collection must apply the idf:
    ``sparse_vector_params={"modifier": models.Modifier.IDF}``.
    """

    @blocking
    async def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return one sparse vector per document."""
        return await self._documents(texts, _vectors)

    aembed_documents = heard(awaiting(embed_documents))

    @blocking
    async def embed_query(self, text: str) -> SparseVector:
        """Return the sparse vector of a query."""
        return await self._query(text, _vectors)

    aembed_query = heard(awaiting(embed_query))


def _vectors(batch: SparseBatch) -> list[SparseVector]:
    return [SparseVector(indices=row.indices.tolist(), values=row.values.tolist()) for row in batch]

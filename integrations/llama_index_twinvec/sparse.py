"""TwinVecSparseEmbedding: the sparse half of a model, for LlamaIndex and its Qdrant and Milvus stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr, model_serializer
from typing_extensions import Self

from llama_index_twinvec.model import TwinVecModel, meet
from llama_index_twinvec.waiting import WaitingRows
from twinvec import SparseBatch
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call, together
from twinvec.overriding import heard

if TYPE_CHECKING:
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction


class TwinVecSparseEmbedding(TwinVecModel, BaseSparseEmbedding):
    """Sparse rows as ``{key: weight}``; ``TwinVecEmbedding.as_sparse`` returns the one that matches a dense half.

    Vector stores ask for the dense and then for the sparse half of the same texts: with both halves on one model that
    takes one forward pass. Weights of ``sparse="bm25"`` need an idf on the query side, which the store must provide: in
    Qdrant, ``SparseVectorParams(modifier=Modifier.IDF)``.

    Examples:
        >>> sparse = embed_model.as_sparse()
        >>> QdrantVectorStore("kb", client=client, enable_hybrid=True, sparse_doc_fn=sparse.sparse_doc_fn,
        ...                   sparse_query_fn=sparse.sparse_query_fn)
        >>> MilvusVectorStore(dim=768, enable_sparse=True, sparse_embedding_function=sparse.for_milvus())
    """

    needs: ClassVar[Literal["dense", "sparse"]] = "sparse"
    _waiting: WaitingRows = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Compute rows itself, until told otherwise by ``taking``."""
        super().model_post_init(context)
        self._waiting = WaitingRows(self.embedder, self.task)

    def taking(self, rows: WaitingRows) -> Self:
        """Take the rows of documents from where a dense half leaves them; return this object."""
        self._waiting = rows
        return self

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any) -> dict[str, Any]:
        """Return the result of ``to_dict``, also within other components."""
        return self.to_dict()

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return keys and weights of documents: ``sparse_doc_fn`` of LlamaIndex's QdrantVectorStore."""
        return _halves(self._waiting.documents(texts))

    def sparse_query_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return keys and weights of queries: ``sparse_query_fn`` of LlamaIndex's QdrantVectorStore."""
        return _halves(self._queries(texts))

    def for_milvus(self) -> BaseSparseEmbeddingFunction:
        """Return this as ``sparse_embedding_function`` of LlamaIndex's MilvusVectorStore.

        That store asks for each node separately, and for its text without metadata. If the dense half has seen
        different texts (metadata that is not in ``excluded_embed_metadata_keys``), each node costs a forward pass of
        its own.

        Raises:
            ConfigurationError: that store's package is not installed.
        """
        try:
            from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction
        except ModuleNotFoundError:
            raise ConfigurationError("pip install llama-index-vector-stores-milvus") from None
        model = self

        class MilvusFunction(BaseSparseEmbeddingFunction):  # type: ignore[misc]
            def encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
                return model._queries(queries).to_dicts()

            def encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
                return model._get_text_embeddings(documents)

            async def async_encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
                return (await model._aqueries(queries)).to_dicts()

            async def async_encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
                return await model._aget_text_embeddings(documents)

        return MilvusFunction()

    @blocking
    async def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return (await call(self._queries, self._aqueries, [query]))[0].to_dict()

    _aget_query_embedding = heard(awaiting(_get_query_embedding))

    @blocking
    async def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return (await call(self._waiting.documents, self._waiting.adocuments, [text]))[0].to_dict()

    _aget_text_embedding = heard(awaiting(_get_text_embedding))

    @blocking
    async def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        if self._only_singles():
            return await together([call(self._get_text_embedding, self._aget_text_embedding, text) for text in texts])
        return (await call(self._waiting.documents, self._waiting.adocuments, texts)).to_dicts()

    _aget_text_embeddings = heard(awaiting(_get_text_embeddings))

    @blocking
    async def _queries(self, texts: list[str]) -> SparseBatch:
        await meet()
        methods = self.embedder.embed_queries, self.embedder.aembed_queries
        rows = (await call(*methods, texts, task=self.task, dense=False)).sparse
        assert rows is not None
        return rows

    _aqueries = awaiting(_queries)


def _halves(rows: SparseBatch) -> tuple[list[list[int]], list[list[float]]]:
    return [row.indices.tolist() for row in rows], [row.values.tolist() for row in rows]

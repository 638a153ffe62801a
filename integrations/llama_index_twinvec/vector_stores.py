"""TwinVecVectorStore: dense and sparse vectors of LlamaIndex's nodes, from a folder to a Qdrant cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from typing_extensions import Self

from llama_index_twinvec.embeddings import TwinVecEmbedding
from llama_index_twinvec.model import meet
from llama_index_twinvec.nodes import REF_DOC_ID, embed_text, slices, to_batch, to_node
from llama_index_twinvec.queries import Search, deletion, matching, read_query
from twinvec.errors import ConfigurationError, InvalidRecordError, StoreMismatchError, StoreNotFoundError
from twinvec.vectors import Float32
from twinvec_stores import (
    And,
    Eq,
    Fusion,
    HybridIndex,
    HybridStore,
    Result,
    StoreConfig,
    open_store,
)
from twinvec_stores.config import FieldType, Quantization
from twinvec_stores.search.fusion import Method

_EVEN = Fusion("relative", dense_weight=0.5, sparse_weight=0.5)


class TwinVecVectorStore(BasePydanticVectorStore):
    """A hybrid store of nodes: LlamaIndex's vector store over a ``HybridStore``.

    Nodes bring the dense vector that the index has computed; the sparse one comes from the same forward pass. Nodes
    come back as they went in. Queries: DEFAULT (dense), SPARSE, HYBRID and MMR. In HYBRID, ``alpha`` weighs the dense
    ranking against the sparse one, each scaled to 0..1: 0 is sparse only, 1 is dense only; without it both count the
    same. ``hybrid_top_k`` is how many to return (default ``similarity_top_k``), ``sparse_top_k`` how many sparse
    candidates take part (default max(100, 10 * k)).

    An index that holds IndexNodes or ImageNodes asks every store for these nodes alone (LlamaIndex's ``node_ids``);
    ``HybridRetriever`` asks for all.

    Examples:
        >>> store = TwinVecVectorStore(embed_model, path="index/")
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        >>> index.as_retriever(vector_store_query_mode="hybrid", alpha=0.5).retrieve("...")
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _embedding: TwinVecEmbedding = PrivateAttr()
    _index: HybridIndex = PrivateAttr()
    _fusion: Fusion = PrivateAttr()

    def __init__(
        self,
        embedding: TwinVecEmbedding,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        store: HybridStore | None = None,
        collection: str | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Quantization | None = None,
        fusion: Fusion | Method | None = None,
        **options: Any,
    ) -> None:
        """Open a store, or make it.

        Args:
            embedding: the model; the index has to use the same as its ``embed_model``.
            path: a folder, for the embedded engine.
            url: a Qdrant server or cluster, http:// or https://.
            store: a store that is open already. None of the three: in memory.
            collection: name on the server; default "twinvec".
            fields: metadata fields to index for fast filters, with their types ("keyword", "integer", "float",
                "bool"), when the store is made. Filters on others work and are slower.
            quantization: "int8" to keep compressed vectors in memory, when the store is made.
            fusion: how HYBRID joins both halves: a method's name or a ``Fusion``. None: "relative", each half with
                weight 0.5, so that scores lie in 0..1.
            options: more for a server: api_key, prefer_grpc, timeout, collection_options ...; see ``QdrantStore``.

        Raises:
            FingerprintMismatchError: it holds another model's vectors.
            ConfigurationError: arguments that do not fit together.
            StoreError: it cannot be opened.
        """
        if not isinstance(embedding, TwinVecEmbedding):
            raise ConfigurationError(f"embedding must be a TwinVecEmbedding, not {type(embedding).__name__}")
        if sum(place is not None for place in (path, url, store)) > 1:
            raise ConfigurationError("pass one of path=, url= and store=")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"url={url!r} must start with http:// or https://; path= is for folders")
        made = {"collection": collection, "fields": fields, "quantization": quantization, **options}
        given = {name: value for name, value in made.items() if value is not None}
        if store is None:
            store = _open(embedding, url or (":memory:" if path is None else os.fspath(path)), **given)
        elif given:
            raise ConfigurationError(f"{', '.join(given)}: already said by the store")
        super().__init__(stores_text=True)
        self._embedding = embedding
        self._index = HybridIndex(embedding.embedder, store, task=embedding.task)
        self._fusion = fusion if isinstance(fusion, Fusion) else Fusion(fusion) if fusion else _EVEN
        if store.config.sparse:
            embedding.waiting_rows()

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
        return "TwinVecVectorStore"

    @property
    def embedding(self) -> TwinVecEmbedding:
        """Return the model."""
        return self._embedding

    @property
    def client(self) -> HybridStore:
        """Return the store itself: count, scroll, optimize ..."""
        return self._index.store

    @property
    def index(self) -> HybridIndex:
        """Return the model and the store together, without LlamaIndex."""
        return self._index

    @property
    def fusion(self) -> Fusion:
        """Return how HYBRID joins both halves."""
        return self._fusion

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes; those with known ids are replaced.

        Args:
            nodes: with the dense vectors of this store's model; those without are embedded here.
            kwargs: none.

        Returns:
            The nodes' ids.

        Raises:
            InvalidRecordError: a node that cannot be stored, or has a vector of another model.
        """
        _refuse(kwargs)
        for some in slices(nodes):
            lacking = [embed_text(node) for node in some if node.embedding is None]
            made = self.embedding.get_text_embedding_batch(lacking) if lacking else []
            texts = [embed_text(node) for node in some]
            sparse = self.embedding.waiting_rows().documents(texts) if self.client.config.sparse else None
            self.client.upsert(to_batch(some, texts, self._dense(some, made), sparse))
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """See ``add``."""
        _refuse(kwargs)
        for some in slices(nodes):
            lacking = [embed_text(node) for node in some if node.embedding is None]
            made = await self.embedding.aget_text_embedding_batch(lacking) if lacking else []
            texts = [embed_text(node) for node in some]
            sparse = await self.embedding.waiting_rows().adocuments(texts) if self.client.config.sparse else None
            await self.client.aupsert(to_batch(some, texts, self._dense(some, made), sparse))
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        _refuse(delete_kwargs)
        self.client.delete(filter=Eq(REF_DOC_ID, ref_doc_id))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """See ``delete``."""
        _refuse(delete_kwargs)
        await self.client.adelete(filter=Eq(REF_DOC_ID, ref_doc_id))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by their ids, by filters, or those of the ids that match.

        Raises:
            ConfigurationError: neither was given; ``clear`` deletes everything.
        """
        _refuse(delete_kwargs)
        self.client.delete(filter=deletion(node_ids, filters))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """See ``delete_nodes``."""
        _refuse(delete_kwargs)
        await self.client.adelete(filter=deletion(node_ids, filters))

    def clear(self) -> None:
        """Delete everything."""
        self.client.delete(filter=And())

    async def aclear(self) -> None:
        """See ``clear``."""
        await self.client.adelete(filter=And())

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes with their dense vectors: by ids (in their order), by filters, by both, or all."""
        if node_ids is not None and filters is None:
            return [to_node(record) for record in self.client.get(node_ids, with_vectors=True)]
        pages = self.client.scroll_all(filter=matching(node_ids, filters), with_vectors=True)
        return [to_node(record) for page in pages for record in page]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """See ``get_nodes``."""
        if node_ids is not None and filters is None:
            return [to_node(record) for record in await self.client.aget(node_ids, with_vectors=True)]
        chosen, nodes, cursor = matching(node_ids, filters), list[BaseNode](), None
        while True:
            page, cursor = await self.client.ascroll(cursor, filter=chosen, with_vectors=True)
            nodes += [to_node(record) for record in page]
            if cursor is None:
                return nodes

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search.

        Args:
            query: mode, text, vector, alpha, filters, numbers of results and candidates; see the class.
            kwargs: ``mmr_threshold`` in mode MMR (1 only relevance, 0 only diversity; default 0.5), and ``fetch_k``,
                ``exact``, ``score_threshold`` as in ``twinvec_stores.SearchOptions``.

        Returns:
            Nodes best first, ties by id. Similarities are cosines (DEFAULT, MMR), sums of weight * weight over common
            terms (SPARSE), or fused scores (HYBRID).

        Raises:
            ConfigurationError: a mode or an argument that this store does not have.
            FilterError: a filter that cannot be applied.
        """
        search = read_query(query, self._fusion, **kwargs)
        batch = self.embedding.embedder.embed_queries([search.text], **self._lacking(search)) if search.lacks else None
        return _result(self._index.search_vectors(*search.vectors(batch), **search.options)[0])

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """See ``query``."""
        search = read_query(query, self._fusion, **kwargs)
        await meet()
        embed = self.embedding.embedder.aembed_queries
        batch = await embed([search.text], **self._lacking(search)) if search.lacks else None
        return _result((await self._index.asearch_vectors(*search.vectors(batch), **search.options))[0])

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Return when everything written so far survives a loss of power; the store keeps its own place."""
        self.client.flush()

    def close(self) -> None:
        """Close the store; the model stays open."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.embedding, self.client, self._fusion)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"

    __str__ = __repr__

    def _lacking(self, search: Search) -> dict[str, Any]:
        return {"task": self.embedding.task, "dense": search.lacks_dense, "sparse": search.lacks_sparse}

    def _dense(self, nodes: Sequence[BaseNode], made: list[list[float]]) -> Float32:
        """Return the nodes' dense rows; ``made`` are those that they did not bring."""
        rest = iter(made)
        rows = [next(rest) if node.embedding is None else node.embedding for node in nodes]
        for node, row in zip(nodes, rows, strict=True):
            if len(row) != self.embedding.dim:
                raise InvalidRecordError(
                    f"node {node.node_id}: its embedding has {len(row)} dimensions, this store's model gives "
                    f"{self.embedding.dim}: give the index the same embed_model as the store"
                )
        return np.array(rows, np.float32)


def _open(
    embedding: TwinVecEmbedding,
    location: str,
    *,
    fields: Mapping[str, FieldType] | None = None,
    quantization: Quantization | None = None,
    **options: Any,
) -> HybridStore:
    """Open what is there, whoever made it; else make it, with an index for deletion by document."""
    if fields is None and quantization is None and location != ":memory:":
        with contextlib.suppress(StoreNotFoundError):
            store = open_store(location, **options)
            try:
                store.config.check(StoreConfig.for_embedder(embedding.embedder, task=embedding.task), repr(store))
            except StoreMismatchError:
                store.close()
                raise
            return store
    fields = {REF_DOC_ID: "keyword", **(fields or {})}
    config = StoreConfig.for_embedder(embedding.embedder, fields=fields, quantization=quantization, task=embedding.task)
    return open_store(location, config, **options)


def _rebuild(
    cls: type[TwinVecVectorStore], embedding: TwinVecEmbedding, store: HybridStore, fusion: Fusion
) -> TwinVecVectorStore:
    return cls(embedding, store=store, fusion=fusion)


def _refuse(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise TypeError(f"TwinVecVectorStore: unexpected keyword arguments: {', '.join(arguments)}")


def _result(results: Sequence[Result]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[to_node(result.record) for result in results],
        similarities=[result.score for result in results],
        ids=[result.record.id for result in results],
    )

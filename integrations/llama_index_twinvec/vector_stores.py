"""TwinVecVectorStore: dense and sparse vectors of LlamaIndex's nodes, from a folder to a Qdrant cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
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
from llama_index_twinvec.joining import embedder_of
from llama_index_twinvec.model import meet
from llama_index_twinvec.nodes import REF_DOC_ID, to_node
from llama_index_twinvec.opening import opened, place_of
from llama_index_twinvec.qdrant import pages_of
from llama_index_twinvec.queries import deletion, is_filter_only, matching, read_query, scope_of
from llama_index_twinvec.reading import documents_of
from llama_index_twinvec.results import ExplainedResult, nodes_of
from llama_index_twinvec.saving import recipe, save
from llama_index_twinvec.sparse import TwinVecSparseEmbedding
from llama_index_twinvec.waiting import WaitingRows
from llama_index_twinvec.writing import write_nodes
from twinvec.closing import Closing
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard, overridden
from twinvec_stores import (
    And,
    Eq,
    Filter,
    Fusion,
    HybridIndex,
    HybridStore,
    IngestReport,
    Record,
    aingest,
    import_store,
    ingest,
)
from twinvec_stores.config import FieldType, Quantization
from twinvec_stores.protocol import check_limit
from twinvec_stores.search.fusion import Method

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

_PAGE = 256


class TwinVecVectorStore(BasePydanticVectorStore, Closing):
    """A hybrid store of nodes: LlamaIndex's vector store over a ``HybridStore``.

    Nodes come with the dense vector computed by the index; the sparse one comes from the same forward pass. Nodes are
    returned exactly as they were added. Query modes: DEFAULT (dense), SPARSE, HYBRID and MMR. In HYBRID, ``alpha``
    weights the dense ranking against the sparse one: 0 is sparse only, 1 is dense only; without it, both are fused as
    in all other classes of TwinVec, see ``twinvec_stores.Fusion``. ``hybrid_top_k`` is the number of results (default
    ``similarity_top_k``), ``sparse_top_k`` the number of sparse candidates (default max(100, 10 * k)).

    An index that contains IndexNodes or ImageNodes asks every store for these nodes only (LlamaIndex's ``node_ids``);
    ``HybridRetriever`` asks for all.

    Examples:
        >>> store = TwinVecVectorStore(embed_model, path="index/")
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        >>> index.as_retriever(vector_store_query_mode="hybrid", alpha=0.5).retrieve("...")
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _embedding: BaseEmbedding = PrivateAttr()
    _index: HybridIndex = PrivateAttr()
    _sparse_rows: WaitingRows = PrivateAttr()
    _fusion: Fusion = PrivateAttr()

    def __init__(
        self,
        embedding: BaseEmbedding,
        *,
        sparse: TwinVecSparseEmbedding | str | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        aclient: AsyncQdrantClient | None = None,
        store: HybridStore | None = None,
        collection: str | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Quantization | None = None,
        fusion: Fusion | Method | None = None,
        **options: Any,
    ) -> None:
        """Open a store, or create it.

        Args:
            embedding: the model; the index must use the same one as its ``embed_model``. A TwinVecEmbedding, whose two
                halves share a forward pass, or any other for the dense half. A subclass that overrides how texts are
                embedded is called through its own methods.
            sparse: the sparse half for another kind of embedding: "bm25", or a TwinVecSparseEmbedding. None: dense
                only.
            path: a folder, for the embedded engine.
            url: a Qdrant server or cluster, http:// or https://; a PostgreSQL database, postgresql://; or a Milvus
                server, milvus://.
            client: your own QdrantClient, which stays open; ``aclient`` is its async twin, without which threads are
                used.
            aclient: see ``client``.
            store: an open store. With none of these: in memory.
            collection: collection on the server; default "twinvec".
            fields: when the store is created: metadata fields to index for fast filters, with their types ("keyword",
                "integer", "float", "bool"). Filters on other fields work, but more slowly.
            quantization: when the store is created: "int8", "binary" or "first_dim=256"; see ``StoreConfig``.
            fusion: how HYBRID merges both halves: a method's name or a ``Fusion``. None: the store's own.
            options: further options for a server: api_key, prefer_grpc, timeout, collection_options ...; see
                ``QdrantStore``, ``PostgresStore`` and ``MilvusStore``.

        Raises:
            FingerprintMismatchError: the store contains another model's vectors.
            ConfigurationError: the arguments contradict each other.
            StoreError: the store cannot be opened.
        """
        embedder = embedder_of(embedding, sparse)
        task = embedding.task if isinstance(embedding, TwinVecEmbedding) else None
        made = {"fields": fields, "quantization": quantization}
        named = {"collection": collection, **options}
        given = {name: value for name, value in {**made, **named}.items() if value is not None}
        place = place_of(path, url, store, (client, aclient), {n: given[n] for n in given if n not in made})
        if store is None:
            in_memory = path is None and url is None and client is None
            store = opened(place, embedder, task, in_memory=in_memory, fields=fields, quantization=quantization)
        elif given:
            raise ConfigurationError(f"{', '.join(given)}: already determined by the store")
        super().__init__(stores_text=True)
        self._embedding = embedding
        self._index = HybridIndex(embedder, store, task=task)
        own = Fusion(**store.config.search.get("fusion", {}))
        self._fusion = fusion if isinstance(fusion, Fusion) else Fusion(fusion) if fusion else own
        if isinstance(embedding, TwinVecEmbedding) and store.config.sparse and embedder is embedding.embedder:
            self._sparse_rows = embedding.waiting_rows()
        else:
            self._sparse_rows = WaitingRows(embedder, task)

    @classmethod
    def from_index(cls, index: HybridIndex, *, fusion: Fusion | Method | None = None) -> Self:
        """Search through an existing index, such as a ``RemoteIndex``; see the constructor."""
        made = cls(TwinVecEmbedding(embedder=index.embedder, task=index.task), store=index.store, fusion=fusion)
        made._index = index
        return made

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return "TwinVecVectorStore"

    @property
    def embedding(self) -> BaseEmbedding:
        """Return the model."""
        return self._embedding

    @property
    def client(self) -> HybridStore:
        """Return the store itself: count, scroll, optimize ..."""
        return self._index.store

    @property
    def index(self) -> HybridIndex:
        """Return the model and the store combined, without LlamaIndex."""
        return self._index

    @property
    def fusion(self) -> Fusion:
        """Return how HYBRID merges both halves."""
        return self._fusion

    @blocking
    async def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, replacing those with the same ids.

        Args:
            nodes: nodes with dense vectors of this store's model; those without are embedded here.
            kwargs: none.

        Returns:
            The nodes' ids.

        Raises:
            InvalidRecordError: a node cannot be stored, or has a vector of another model.
        """
        _refuse(kwargs)
        await write_nodes(nodes, self._index, self.embedding, self._sparse_rows)
        return [node.node_id for node in nodes]

    async_add = heard(awaiting(add, "async_add"))

    @blocking
    async def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        _refuse(delete_kwargs)
        await call(self.client.delete, self.client.adelete, filter=Eq(REF_DOC_ID, ref_doc_id))

    adelete = heard(awaiting(delete))

    @blocking
    async def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by their ids, by filters, or those of the ids that also match.

        Raises:
            ConfigurationError: neither was given; ``clear`` deletes everything.
        """
        _refuse(delete_kwargs)
        await call(self.client.delete, self.client.adelete, filter=deletion(node_ids, filters))

    adelete_nodes = heard(awaiting(delete_nodes))

    @blocking
    async def clear(self) -> None:
        """Delete everything."""
        await call(self.client.delete, self.client.adelete, filter=And())

    aclear = heard(awaiting(clear))

    @blocking
    async def ingest(self, source: Any, **options: Any) -> IngestReport:
        """Put documents into the store, skipping those it already has unchanged.

        Whatever an interrupted run has stored is kept, ``prune`` deletes documents that are no longer in the source,
        and the report counts both. Each document is split by the model's own tokens (``chunk_tokens``) and embedded
        without its metadata. Its id becomes the ``ref_doc_id`` of its nodes, for ``delete``, ``doc_ids`` and
        ``group_by``.

        Args:
            source: one of LlamaIndex's readers, its documents, or anything else that ``twinvec_stores.ingest`` reads.
                Documents need ids that stay the same between runs.
            options: options of ``twinvec_stores.ingest``: chunk_tokens, overlap_tokens, metadata_fields, prune,
                on_error, batch_size, show_progress ...

        Raises:
            ConfigurationError: a subclass overrides ``add``, which this would bypass.
            IngestError, StoreError: see ``twinvec_stores.ingest``.
        """
        if overridden(self, TwinVecVectorStore, "add", "async_add"):
            raise ConfigurationError(f"{type(self).__name__} overrides add, which ingest would bypass: use add")
        embedder, documents = self._index.embedder, documents_of(source)
        return await call(ingest, aingest, documents, embedder, self.client, document_field=REF_DOC_ID, **options)

    aingest = awaiting(ingest)

    @blocking
    async def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        limit: int | None = None,
    ) -> list[BaseNode]:
        """Return nodes with their dense vectors: by ids (in their order), by filters, by both, or all.

        Args:
            node_ids: only these nodes.
            filters: only matching nodes.
            limit: maximum number of nodes.
        """
        if limit is not None:
            check_limit(limit)
        if node_ids is not None and filters is None:
            records = await call(self.client.get, self.client.aget, node_ids, with_vectors=True)
            return [to_node(record) for record in records[:limit]]
        return [to_node(record) for record in await self._listed(matching(node_ids, filters), limit, with_vectors=True)]

    aget_nodes = heard(awaiting(get_nodes))

    async def _listed(self, filter: Filter, limit: int | None, *, with_vectors: bool) -> list[Record]:
        records, cursor, page = list[Record](), None, min(_PAGE, limit or _PAGE)
        scroll = functools.partial(self.client.scroll, limit=page, filter=filter, with_vectors=with_vectors)
        ascroll = functools.partial(self.client.ascroll, limit=page, filter=filter, with_vectors=with_vectors)
        while True:
            some, cursor = await call(scroll, ascroll, cursor)
            records += some
            if cursor is None or (limit is not None and len(records) >= limit):
                return records[:limit]

    def scoped(self, filters: MetadataFilters | Mapping[str, Any] | Filter) -> Self:
        """Return a view that can neither read nor write outside a filter, such as one tenant's part.

        Every query, deletion, listing and explanation is limited to it. A node that contradicts the filter is rejected,
        and so is one with the id of a node outside; if the filter says what a field equals, nodes without the field get
        it. Closing the view leaves the store open. See ``twinvec_stores.ScopedStore``.

        Examples:
            >>> index = VectorStoreIndex.from_vector_store(store.scoped({"tenant": "a"}), embed_model=embed_model)
        """
        made = self.model_copy()
        made._index = self._index.scoped(scope_of(filters))
        return made

    @blocking
    async def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search.

        Args:
            query: mode, text, vector, alpha, filters, numbers of results and candidates; see the class.
            kwargs: ``mmr_threshold`` in mode MMR (1 for relevance only, 0 for diversity only; default 0.5), ``task``
                instead of the embedding's, and fields of ``twinvec_stores.SearchOptions``: fusion, fetch_k,
                score_threshold ...

        Returns:
            Nodes best first, ties by id. Similarities are cosines (DEFAULT, MMR), dot products over common terms
            (SPARSE), or fused scores (HYBRID).

        Raises:
            ConfigurationError: the store does not support a mode or argument.
            FilterError: a filter cannot be applied.
        """
        await meet()
        task = kwargs.pop("task", self._index.task)
        search = read_query(query, self._fusion, **kwargs)
        if is_filter_only(query):
            chosen = search.options["filter"]
            return ExplainedResult.unranked(await self._listed(chosen, search.options["k"], with_vectors=False))
        batch = None
        if search.lacks:
            halves = {"task": task, "dense": search.lacks_dense, "sparse": search.lacks_sparse}
            embed = functools.partial(self._index.embedder.embed_queries, **halves)
            batch = await call(embed, functools.partial(self._index.embedder.aembed_queries, **halves), [search.text])
        options = {**search.options, "texts": [search.text] if search.text else None}
        find = functools.partial(self._index.search_vectors, **options)
        afind = functools.partial(self._index.asearch_vectors, **options)
        [results] = await call(find, afind, *search.vectors(batch))
        return ExplainedResult.of(results, await nodes_of(self.client, results, search.options.get("expand", 0)))

    aquery = heard(awaiting(query))

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Return once everything written so far would survive a power failure; the store keeps its own location.

        Args:
            persist_path: for an in-memory store: the file to write, for ``from_persist_path``.
            fs: only local file systems.

        Raises:
            ConfigurationError: an in-memory store, called by ``StorageContext.persist``, whose ``from_defaults`` would
                read the file as that of a SimpleVectorStore.
        """
        save(self.client, persist_path, fs)

    @classmethod
    def from_persist_path(cls, persist_path: str, embedding: BaseEmbedding, **options: Any) -> Self:
        """Read the output of ``persist``: into memory, or with ``path=`` or ``url=`` into such a store."""
        made = cls(embedding, **options)
        import_store(persist_path, made.client)
        return made

    @classmethod
    def from_qdrant(
        cls,
        embedding: BaseEmbedding,
        client: QdrantClient,
        collection_name: str,
        *,
        text_key: str = "text",
        **options: Any,
    ) -> Self:
        """Copy a collection written by LlamaIndex's QdrantVectorStore, with its nodes and their dense vectors.

        Only what is missing is embedded: the sparse half, and one node per page, to check that the vectors come from
        this model. The collection is not changed; repeating the call resumes an interrupted copy.

        Args:
            embedding: the model with which the collection was created.
            client: client of its server.
            collection_name: its name on the server.
            text_key: as passed to QdrantVectorStore.
            options: options of the constructor: path, url, client, fields ...

        Raises:
            StoreNotFoundError: there is no such collection.
            StoreMismatchError: it has several vectors per node, or those of another model.
            InvalidRecordError: a point was not written by LlamaIndex, or has a vector of another model.
        """
        made = cls(embedding, **options)
        try:
            assert made.index.embedder.dim is not None
            for nodes in pages_of(client, collection_name, made.index.embedder.dim, text_key):
                made.add(nodes)
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Close the store; the model stays open."""
        self._index.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.embedding, *recipe(self.client), self._fusion)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        make, arguments = self.__reduce__()
        made: Self = make(*arguments)
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"

    __str__ = __repr__


def _rebuild(
    cls: type[TwinVecVectorStore],
    embedding: BaseEmbedding,
    make: Callable[..., HybridStore],
    arguments: tuple[Any, ...],
    fusion: Fusion,
) -> TwinVecVectorStore:
    return cls(embedding, store=make(*arguments), fusion=fusion)


def _refuse(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise TypeError(f"TwinVecVectorStore: unexpected keyword arguments: {', '.join(arguments)}")

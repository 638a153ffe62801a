"""TwinVecVectorStore: dense and sparse vectors of LlamaIndex's nodes, from a folder to a Qdrant cluster."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from typing_extensions import Self

from llama_index_twinvec.embeddings import TwinVecEmbedding
from llama_index_twinvec.joining import embedder_of
from llama_index_twinvec.model import meet
from llama_index_twinvec.nodes import REF_DOC_ID, Columns, explanation_of, slices, to_node
from llama_index_twinvec.queries import deletion, matching, read_query
from llama_index_twinvec.sparse import TwinVecSparseEmbedding
from llama_index_twinvec.waiting import WaitingRows
from twinvec import BaseEmbedder, Task
from twinvec.errors import ConfigurationError, InvalidRecordError, StoreMismatchError, StoreNotFoundError
from twinvec.flows import block, call, wait
from twinvec.overriding import twin_of
from twinvec.vectors import Float32
from twinvec_stores import (
    And,
    Eq,
    Fusion,
    HybridIndex,
    HybridStore,
    MemoryStore,
    Record,
    RecordBatch,
    Result,
    StoreConfig,
    export_store,
    import_store,
    open_store,
)
from twinvec_stores.config import FieldType, Quantization
from twinvec_stores.search.fusion import Method

_SAME = 0.95  # cosine of two vectors that one model gives for one text, in whatever precision
_OF_STORAGE = f"{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"  # what StorageContext.persist calls a store's file


class TwinVecVectorStore(BasePydanticVectorStore):
    """A hybrid store of nodes: LlamaIndex's vector store over a ``HybridStore``.

    Nodes bring the dense vector that the index has computed; the sparse one comes from the same forward pass. Nodes
    come back as they went in. Queries: DEFAULT (dense), SPARSE, HYBRID and MMR. In HYBRID, ``alpha`` weighs the dense
    ranking against the sparse one: 0 is sparse only, 1 is dense only; without it both are joined as in every other
    class of TwinVec, see ``twinvec_stores.Fusion``. ``hybrid_top_k`` is how many to return (default
    ``similarity_top_k``), ``sparse_top_k`` how many sparse
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
        store: HybridStore | None = None,
        collection: str | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Quantization | None = None,
        fusion: Fusion | Method | None = None,
        **options: Any,
    ) -> None:
        """Open a store, or make it.

        Args:
            embedding: the model; the index has to use the same as its ``embed_model``. A TwinVecEmbedding, whose two
                halves are one forward pass, or any other for the dense half. A subclass that overrides how texts are
                embedded is asked through its own methods.
            sparse: the sparse half beside another kind of embedding: "bm25", or a TwinVecSparseEmbedding. None: dense
                only.
            path: a folder, for the embedded engine.
            url: a Qdrant server or cluster, http:// or https://.
            store: a store that is open already. None of the three: in memory.
            collection: name on the server; default "twinvec".
            fields: metadata fields to index for fast filters, with their types ("keyword", "integer", "float",
                "bool"), when the store is made. Filters on others work and are slower.
            quantization: "int8" to keep compressed vectors in memory, when the store is made.
            fusion: how HYBRID joins both halves: a method's name or a ``Fusion``. None: ``Fusion()``.
            options: more for a server: api_key, prefer_grpc, timeout, collection_options ...; see ``QdrantStore``.

        Raises:
            FingerprintMismatchError: it holds another model's vectors.
            ConfigurationError: arguments that do not fit together.
            StoreError: it cannot be opened.
        """
        embedder = embedder_of(embedding, sparse)
        task = embedding.task if isinstance(embedding, TwinVecEmbedding) else None
        if sum(place is not None for place in (path, url, store)) > 1:
            raise ConfigurationError("pass one of path=, url= and store=")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"url={url!r} must start with http:// or https://; path= is for folders")
        made = {"collection": collection, "fields": fields, "quantization": quantization, **options}
        given = {name: value for name, value in made.items() if value is not None}
        if store is None:
            store = _open(embedder, task, url or (":memory:" if path is None else os.fspath(path)), **given)
        elif given:
            raise ConfigurationError(f"{', '.join(given)}: already said by the store")
        super().__init__(stores_text=True)
        self._embedding = embedding
        self._index = HybridIndex(embedder, store, task=task)
        self._fusion = fusion if isinstance(fusion, Fusion) else Fusion(fusion) if fusion else Fusion()
        if isinstance(embedding, TwinVecEmbedding) and store.config.sparse and embedder is embedding.embedder:
            self._sparse_rows = embedding.waiting_rows()
        else:
            self._sparse_rows = WaitingRows(embedder, task)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
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
        return block(self._add(nodes))

    @twin_of("add")
    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """See ``add``."""
        _refuse(kwargs)
        return await wait(self._add(nodes))

    async def _add(self, nodes: Sequence[BaseNode]) -> list[str]:
        for some in slices(nodes):
            columns = Columns.of(some, self.client.config)
            dense = await self._dense(some, columns.texts)
            rows = self._sparse_rows
            sparse = await call(rows.documents, rows.adocuments, columns.texts) if self.client.config.sparse else None
            await call(self.client.upsert, self.client.aupsert, columns.with_vectors(dense, sparse))
        return [node.node_id for node in nodes]

    async def _dense(self, nodes: Sequence[BaseNode], texts: list[str]) -> Float32:
        """Return the nodes' dense rows, embedding those that bring none.

        Raises:
            InvalidRecordError: a row of another model.
        """
        model, lacking = self.embedding, [i for i, node in enumerate(nodes) if node.embedding is None]
        made: list[list[float]] = []
        if lacking:
            embed = model.get_text_embedding_batch, model.aget_text_embedding_batch
            made = await call(*embed, [texts[i] for i in lacking])
        rows = [node.embedding for node in nodes]
        for i, row in zip(lacking, made, strict=True):
            rows[i] = row
        for node, each in zip(nodes, rows, strict=True):
            if each is None or len(each) != self._index.embedder.dim:
                raise InvalidRecordError(
                    f"its embedding has {len(each or ())} dimensions, this store's model gives "
                    f"{self._index.embedder.dim}: give the index the same embed_model as the store",
                    id=node.node_id,
                    field="embedding",
                )
        dense = np.array(rows, np.float32)
        brought = set(range(len(nodes))).difference(lacking)
        if brought and texts[last := max(brought)] not in self._sparse_rows:  # a text that waits was embedded by ours
            await self._check_model(nodes[last], texts[last], dense[last])
        return dense

    async def _check_model(self, node: BaseNode, text: str, row: Float32) -> None:
        """Refuse a row of another model: embedded a moment ago, a text is mostly remembered."""
        own = np.array(await call(self.embedding._get_text_embedding, self.embedding._aget_text_embedding, text))
        if float(own @ row) < _SAME * float(np.linalg.norm(own) * np.linalg.norm(row)):
            raise InvalidRecordError(
                f"its embedding is not one of this store's model, {self._index.embedder.spec.model}: give the index "
                "the same embed_model as the store",
                id=node.node_id,
                field="embedding",
            )

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        _refuse(delete_kwargs)
        self.client.delete(filter=Eq(REF_DOC_ID, ref_doc_id))

    @twin_of("delete")
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

    @twin_of("delete_nodes")
    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """See ``delete_nodes``."""
        _refuse(delete_kwargs)
        await self.client.adelete(filter=deletion(node_ids, filters))

    def clear(self) -> None:
        """Delete everything."""
        self.client.delete(filter=And())

    @twin_of("clear")
    async def aclear(self) -> None:
        """See ``clear``."""
        await self.client.adelete(filter=And())

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes with their dense vectors: by ids (in their order), by filters, by both, or all."""
        if node_ids is not None and filters is None:
            return [to_node(record) for record in self.client.get(node_ids, with_vectors=True)]
        pages = self.client.scroll_all(filter=matching(node_ids, filters), with_vectors=True)
        return [to_node(record) for page in pages for record in page]

    @twin_of("get_nodes")
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
            kwargs: ``mmr_threshold`` in mode MMR (1 only relevance, 0 only diversity; default 0.5), ``task`` in place
                of the embedding's, and fields of ``twinvec_stores.SearchOptions``: fusion, fetch_k, score_threshold ...

        Returns:
            Nodes best first, ties by id. Similarities are cosines (DEFAULT, MMR), sums of weight * weight over common
            terms (SPARSE), or fused scores (HYBRID).

        Raises:
            ConfigurationError: a mode or an argument that this store does not have.
            FilterError: a filter that cannot be applied.
        """
        return block(self._found(query, kwargs))

    @twin_of("query")
    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """See ``query``."""
        await meet()
        return await wait(self._found(query, kwargs))

    async def _found(self, query: VectorStoreQuery, given: dict[str, Any]) -> VectorStoreQueryResult:
        task = given.pop("task", self._index.task)
        search = read_query(query, self._fusion, **given)
        batch = None
        if search.lacks:
            halves = {"task": task, "dense": search.lacks_dense, "sparse": search.lacks_sparse}
            embed = functools.partial(self._index.embedder.embed_queries, **halves)
            batch = await call(embed, functools.partial(self._index.embedder.aembed_queries, **halves), [search.text])
        find = functools.partial(self._index.search_vectors, **search.options)
        afind = functools.partial(self._index.asearch_vectors, **search.options)
        return ExplainedResult.of((await call(find, afind, *search.vectors(batch)))[0])

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Return when everything written so far survives a loss of power; the store keeps its own place.

        Args:
            persist_path: of a store in memory: the file to write, for ``from_persist_path``.
            fs: only local files.

        Raises:
            ConfigurationError: a store in memory, called by ``StorageContext.persist``, whose ``from_defaults`` would
                read the file as one of a SimpleVectorStore.
        """
        if not isinstance(self.client, MemoryStore):
            self.client.flush()
            return
        if fs is not None or not persist_path or persist_path.endswith(_OF_STORAGE):
            raise ConfigurationError(
                "this store is in memory, and StorageContext reads no such file again: make it with path=, which is "
                "there the next time, or call persist with the path of a local file and from_persist_path later"
            )
        export_store(self.client, persist_path)

    @classmethod
    def from_persist_path(cls, persist_path: str, embedding: BaseEmbedding, **options: Any) -> Self:
        """Read what ``persist`` wrote: into memory, or with ``path=`` or ``url=`` into such a store."""
        made = cls(embedding, **options)
        import_store(persist_path, made.client)
        return made

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
        if isinstance(self.client, MemoryStore):
            pages = list(self.client.scroll_all(with_vectors=True))
            return _refilled, (type(self), self.embedding, self.client.config, pages, self._fusion)
        return _rebuild, (type(self), self.embedding, self.client, self._fusion)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"

    __str__ = __repr__


def _open(
    embedder: BaseEmbedder,
    task: Task | str | None,
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
                store.config.check(StoreConfig.for_embedder(embedder, task=task), repr(store))
            except StoreMismatchError:
                store.close()
                raise
            return store
    fields = {REF_DOC_ID: "keyword", **(fields or {})}
    config = StoreConfig.for_embedder(embedder, fields=fields, quantization=quantization, task=task)
    return open_store(location, config, **options)


def _rebuild(
    cls: type[TwinVecVectorStore], embedding: BaseEmbedding, store: HybridStore, fusion: Fusion
) -> TwinVecVectorStore:
    return cls(embedding, store=store, fusion=fusion)


def _refilled(
    cls: type[TwinVecVectorStore],
    embedding: BaseEmbedding,
    config: StoreConfig,
    pages: list[list[Record]],
    fusion: Fusion,
) -> TwinVecVectorStore:
    store = MemoryStore(config)
    for page in pages:
        store.upsert(RecordBatch.of(page))
    return cls(embedding, store=store, fusion=fusion)


def _refuse(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise TypeError(f"TwinVecVectorStore: unexpected keyword arguments: {', '.join(arguments)}")


@dataclass
class ExplainedResult(VectorStoreQueryResult):
    """A result that also knows, with ``explain=True``, why each node was found.

    Attributes:
        explanations: see ``ExplainedNode``; None where they were not asked for.
    """

    explanations: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, results: Sequence[Result]) -> ExplainedResult:
        """Return what a search has found."""
        explanations = [explanation_of(result) for result in results if result.explanation is not None]
        return cls(
            nodes=[to_node(result.record) for result in results],
            similarities=[result.score for result in results],
            ids=[result.record.id for result in results],
            explanations=explanations if len(explanations) == len(results) else None,
        )

"""TwinVecVectorStore: LangChain's vector store interface over a HybridIndex."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from typing_extensions import Self

from langchain_twinvec.base import TwinVecSparseModel
from langchain_twinvec.columns import AT_ONCE, as_columns, as_documents, in_batches
from langchain_twinvec.embeddings import TwinVecEmbeddings
from langchain_twinvec.joining import embedder_of
from langchain_twinvec.managing import ManagedStore, refuse
from langchain_twinvec.peers import CONSTRUCTOR, refuse_names_of_peers
from langchain_twinvec.retrievers import HybridRetriever
from langchain_twinvec.searching import need_both_halves
from twinvec.closing import AsyncClosing
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, block, blocking, call, wait
from twinvec.overriding import changed_alone, heard, overridden, twin_of
from twinvec.workers import in_thread
from twinvec_stores import (
    Fusion,
    HybridIndex,
    HybridStore,
    IngestReport,
    MemoryStore,
    SearchOptions,
    StoreConfig,
    aingest,
    ingest,
    open_store,
)
from twinvec_stores.config import FieldType, Quantization
from twinvec_stores.opening import check_server
from twinvec_stores.search.fusion import Method
from twinvec_stores.search.options import Mode


class TwinVecVectorStore(ManagedStore, AsyncClosing):
    """Documents with dense and sparse vectors, searched by both halves or by one.

    Each text costs one forward pass for both halves. Adding a document with an existing id replaces it. The async
    methods never block the event loop, and concurrent calls share forward passes.

    Besides LangChain's own, search methods take these keyword arguments: ``filter`` (a dict in the form common to
    LangChain's stores, ``{"year": {"$gte": 2020}}``, or a filter of ``twinvec_stores``), ``task`` (instead of the
    embeddings' own), and the fields of ``twinvec_stores.SearchOptions``: ``mode``, ``fusion``, ``fetch_k``,
    ``dense_k``, ``sparse_k``, ``score_threshold``, ``min_dense``, ``min_sparse``, ``group_by``, ``group_size``,
    ``expand``, ``mmr``, ``rerank``, ``explain``, ``exact``. With ``expand=1``, a document's text is the chunk together
    with its neighbours. With ``scores=True``, ``document.metadata["_twinvec"]["score"]`` is the score. With
    ``explain=True``, ``document.metadata["_twinvec"]`` explains why a document was found: ``score``, ``dense_score``,
    ``sparse_score``, ``dense_rank``, ``sparse_rank`` and ``terms`` (see ``twinvec_stores.Explanation``), with
    ``rerank`` also ``rerank_score`` and ``rerank_rank``, and ``provenance`` if it came from a file.

    Attributes:
        index: the underlying HybridIndex; ``index.store`` is the store.

    Examples:
        >>> store = TwinVecVectorStore.from_texts(["Paris is the capital of France."], embeddings, path="index/")
        >>> store.similarity_search("capital of France", k=1)[0].page_content
        'Paris is the capital of France.'
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        sparse: TwinVecSparseModel | str | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        store: HybridStore | None = None,
        collection: str | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Quantization | None = None,
        mode: Mode | None = None,
        fusion: Fusion | Method | None = None,
        **options: Any,
    ) -> None:
        """Open a store, or create one.

        Args:
            embedding: TwinVecEmbeddings, whose two halves share a forward pass; or any other Embeddings, for the dense
                half. A subclass that overrides ``embed_documents`` or ``embed_query`` is called through these.
            sparse: the sparse half for other Embeddings: "bm25", or TwinVecSparseEmbeddings. None: dense only.
            path: a folder, for the embedded engine.
            url: a Qdrant server or cluster, http:// or https://; a PostgreSQL database, postgresql://; or a Milvus
                server, milvus://.
            store: an open store. With none of the three: in memory.
            collection: collection on the server; default "twinvec".
            fields: metadata fields to index, with their types ("keyword", "integer", "float", "bool").
            quantization: "int8", "binary" or "first_dim=256": what a first pass reads; see ``StoreConfig``.
            mode: default mode of searches: "hybrid", "dense" or "sparse"; None: hybrid if the model has both halves.
            fusion: default fusion of searches: a Fusion, or the name of a method; None: ``Fusion()``.
            options: with ``url``, further arguments of ``QdrantStore`` (api_key, prefer_grpc, collection_options ...),
                ``PostgresStore`` (pool_size, timeout) or ``MilvusStore`` (token, consistency ...).

        Raises:
            ConfigurationError: the arguments contradict each other, or these are not embeddings.
            FingerprintMismatchError: the store contains another model's vectors.
            StoreError: the store cannot be opened.
        """
        refuse_names_of_peers(options, CONSTRUCTOR)
        embedder = embedder_of(embedding, sparse)
        task = embedding.task if isinstance(embedding, TwinVecEmbeddings) else None
        self._embeddings = embedding
        self._defaults: dict[str, Any] = {
            name: value for name, value in (("mode", mode), ("fusion", fusion)) if value is not None
        }
        config = StoreConfig.for_embedder(embedder, fields=fields, quantization=quantization, task=task)
        SearchOptions(**self._defaults).parts(config)
        if fusion is not None:
            need_both_halves(config)
        if store is None:
            store = _open(path, url, config, collection, options)
        elif given := [n for n, v in (("path", path), ("url", url), ("collection", collection), *options.items()) if v]:
            raise ConfigurationError(f"{', '.join(given)}: already determined by store=")
        store.config.check(config, repr(store))
        self.index = HybridIndex(embedder, store, task=task)

    @classmethod
    def from_existing(
        cls,
        embedding: Embeddings,
        *,
        sparse: TwinVecSparseModel | str | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        collection: str | None = None,
        mode: Mode | None = None,
        fusion: Fusion | Method | None = None,
        **options: Any,
    ) -> Self:
        """Open an existing store without creating one; see the constructor for the arguments.

        Raises:
            StoreNotFoundError: there is no store.
        """
        refuse_names_of_peers(options, CONSTRUCTOR)
        if path is None and url is None:
            raise ConfigurationError("from_existing needs path= or url=")
        store = _open(path, url, None, collection, options)
        try:
            return cls(embedding, sparse=sparse, store=store, mode=mode, fusion=fusion)
        except BaseException:
            store.close()
            raise

    @classmethod
    def from_index(cls, index: HybridIndex, *, mode: Mode | None = None, fusion: Fusion | Method | None = None) -> Self:
        """Search through an existing index, such as a ``RemoteIndex``; see the constructor."""
        embeddings = TwinVecEmbeddings(embedder=index.embedder, task=index.task)
        made = cls(embeddings, store=index.store, mode=mode, fusion=fusion)
        made.index = index
        return made

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a store, or create one, and add texts; ``kwargs`` are those of the constructor."""
        made = cls(embedding, **kwargs)
        try:
            made.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            if "store" not in kwargs:
                made.close()
            raise
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """See ``from_texts``."""
        if changed_alone(cls, "from_texts", "afrom_texts"):
            return await in_thread(cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs)
        made = await in_thread(cls, embedding, **kwargs)
        try:
            await made.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            if "store" not in kwargs:
                made.close()
            raise
        return made

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = AT_ONCE,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them, with one forward pass for both halves.

        Args:
            texts: any number of strings.
            metadatas: JSON objects, one per text.
            ids: one per text; existing ids are replaced. None, also for individual texts: a random id.
            batch_size: number of texts embedded before they are written; if a later text fails, those already written
                stay.
            kwargs: none.

        Returns:
            The ids.
        """
        refuse(kwargs)
        if _only(self, "add_documents", "add_texts"):
            return self.add_documents(as_documents(texts, metadatas, ids), batch_size=batch_size)
        return block(self._add(texts, metadatas, ids, batch_size))

    @twin_of("add_texts")
    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = AT_ONCE,
        **kwargs: Any,
    ) -> list[str]:
        """See ``add_texts``."""
        refuse(kwargs)
        if _only(self, "aadd_documents", "aadd_texts") or _only(self, "add_documents", "add_texts"):
            return await self.aadd_documents(as_documents(texts, metadatas, ids), batch_size=batch_size)
        return await wait(self._add(texts, metadatas, ids, batch_size))

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Embed documents and store them; see ``add_texts`` for more arguments.

        Args:
            documents: with or without their own ids.
            kwargs: ``ids`` to use instead of the documents' own, ``batch_size``.
        """
        if _only(self, "add_texts", "add_documents"):
            return super().add_documents(documents, **kwargs)
        return block(self._add(**as_columns(documents, **kwargs)))

    @twin_of("add_documents")
    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """See ``add_documents``."""
        if _only(self, "aadd_texts", "aadd_documents") or _only(self, "add_texts", "add_documents"):
            return await super().aadd_documents(documents, **kwargs)
        return await wait(self._add(**as_columns(documents, **kwargs)))

    async def _add(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None,
        ids: Sequence[str | None] | None,
        batch_size: int,
    ) -> list[str]:
        added: list[str] = []
        progress = getattr(self._embeddings, "show_progress", False)
        for batch in in_batches(texts, metadatas, ids, batch_size):
            added += await call(self.index.add, self.index.aadd, **batch, show_progress=progress)
        return added

    @blocking
    async def ingest(self, source: BaseLoader | str | os.PathLike[str] | Iterable[Any], **options: Any) -> IngestReport:
        """Bring the store up to date with a source; documents it already has unchanged are not embedded again.

        Memory stays bounded however large the source is, and the same call resumes an interrupted run. A document is
        identified by its id, otherwise by metadata["id"], otherwise by its content.

        Args:
            source: one of LangChain's loaders, which is read lazily; Documents; or a file or folder.
            options: options of ``twinvec_stores.ingest``: chunk_tokens, overlap_tokens, prune, on_error, batch_size,
                show_progress ...

        Returns:
            Counts and failures.
        """
        if overridden(self, TwinVecVectorStore, "add_texts", "aadd_texts", "add_documents", "aadd_documents"):
            raise ConfigurationError("ingest would bypass this store's own add_texts: pass documents to that")
        documents = source.lazy_load() if isinstance(source, BaseLoader) else source
        options = {"show_progress": getattr(self._embeddings, "show_progress", False), **options}
        return await call(ingest, aingest, documents, self.index.embedder, self.index.store, **options)

    aingest = heard(awaiting(ingest))

    def as_retriever(self, **kwargs: Any) -> HybridRetriever:
        """Return a retriever; ``kwargs`` are its fields: ``k``, ``fusion``, ``filter`` ..., or LangChain's
        ``search_type`` and ``search_kwargs``.
        """
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return HybridRetriever(vectorstore=self, tags=tags, **kwargs)

    def close(self) -> None:
        """Close the store; the embeddings stay open."""
        self.index.close()

    async def aclose(self) -> None:
        """See ``close``."""
        await self.index.store.aclose()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.index.store, MemoryStore):
            raise TypeError("a store in memory cannot be pickled: it only exists in this process; use path= or url=")
        return self.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index.store!r})"


def _open(
    path: str | os.PathLike[str] | None,
    url: str | None,
    config: StoreConfig | None,
    collection: str | None,
    options: Mapping[str, Any],
) -> HybridStore:
    if path is not None and url is not None:
        raise ConfigurationError("pass path= or url=, not both")
    where = path if path is not None else check_server(url) if url is not None else ":memory:"
    return open_store(where, config, collection=collection, **options)


def _only(store: TwinVecVectorStore, name: str, other: str) -> bool:
    """Return whether a subclass overrides one of two equivalent methods, but not the other."""
    return overridden(store, TwinVecVectorStore, name) and not overridden(store, TwinVecVectorStore, other)

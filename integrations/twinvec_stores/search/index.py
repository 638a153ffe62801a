"""HybridIndex: a model and a store combined. Texts go in, ranked records come out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from twinvec import BaseEmbedder, SparseBatch, Task
from twinvec.flows import Call, Flow, block, call, on_thread, wait
from twinvec.tracing import traced_search
from twinvec.vectors import Float32
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import Filter
from twinvec_stores.metadata import plain_id
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import RecordBatch, check_rows
from twinvec_stores.scoped import ScopedStore
from twinvec_stores.search.explain import Result
from twinvec_stores.search.options import SearchKeywords, SearchOptions, to_stored, with_stored
from twinvec_stores.search.searching import Searching
from twinvec_stores.tokens import asking, kept_tokens

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Index = TypeVar("_Index", bound="HybridIndex")


class HybridIndex:
    """A model and a store of its vectors. Thread safe; every method has an async twin, prefixed with ``a``.

    Examples:
        >>> with HybridIndex(embedder, EmbeddedStore("index/", StoreConfig.for_embedder(embedder))) as index:
        ...     index.add(["Paris is the capital of France."], ids=["paris"])
        ...     index.search("capital of France", k=3)[0].record.text
        'Paris is the capital of France.'
    """

    def __init__(self, embedder: BaseEmbedder, store: HybridStore, *, task: Task | str | None = None) -> None:
        """Combine a model and a store.

        Args:
            embedder: the model, an Embedder or a RemoteEmbedder.
            store: a store created with ``StoreConfig.for_embedder``.
            task: the index's task, instead of the embedder's: an instruction, for models trained with them.

        Raises:
            FingerprintMismatchError: the store contains another model's vectors.
            StoreMismatchError: its documents were embedded with another prompt.
        """
        store.config.check(StoreConfig.for_embedder(embedder, task=task), repr(store))
        self.embedder = embedder
        self.store = store
        self.task = task

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[Any] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Embed documents, with one forward pass for both halves, and store them.

        Args:
            texts: the documents.
            ids: one per text; existing ids are replaced; see ``plain_id``. None: random ids.
            metadata: one dict per text; see ``plain_metadata``. Checked before anything is embedded.
            show_progress: draw a progress bar.

        Returns:
            The ids.
        """
        return block(self._add(texts, ids, metadata, show_progress))

    async def aadd(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[Any] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """See ``add``."""
        return await wait(self._add(texts, ids, metadata, show_progress))

    async def _add(
        self,
        texts: Sequence[str],
        ids: Sequence[Any] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
        show_progress: bool,
    ) -> list[str]:
        given = [uuid.uuid4() for _ in texts] if ids is None else ids
        rows = await on_thread(check_rows, given, texts, metadata, self.store.config)
        embedder, store = self.embedder, self.store
        pool = store.config.token_pool
        asked = {"task": self.task, "show_progress": show_progress, **asking(pool)}
        batch = await Call(
            lambda: embedder.embed_documents(rows.texts, **asked),
            lambda: embedder.aembed_documents(rows.texts, **asked),
        )
        tokens = kept_tokens(batch, pool)
        records = RecordBatch(rows.ids, rows.texts, batch.dense, batch.sparse, rows.metadata, tokens=tokens)
        await call(store.upsert, store.aupsert, records)
        return rows.ids

    def update_metadata(self, ids: Sequence[Any], changes: Mapping[str, Any]) -> list[str]:
        """Update the metadata of records without embedding them again; missing ids are skipped.

        Returns:
            The ids that were found.
        """
        return block(self._update_metadata(ids, changes))

    async def aupdate_metadata(self, ids: Sequence[Any], changes: Mapping[str, Any]) -> list[str]:
        """See ``update_metadata``."""
        return await wait(self._update_metadata(ids, changes))

    async def _update_metadata(self, ids: Sequence[Any], changes: Mapping[str, Any]) -> list[str]:
        store, names = self.store, [plain_id(id) for id in ids]
        records = await call(store.get, store.aget, names, with_vectors=True)
        changed = [replace(record, metadata={**record.metadata, **changes}) for record in records]
        if changed:
            await call(store.upsert, store.aupsert, RecordBatch.of(changed))
        return [record.id for record in changed]

    def search(self, query: str, *, task: Task | str | None = None, **options: Unpack[SearchKeywords]) -> list[Result]:
        """Return the best records for a query, best first, ties by id.

        Args:
            query: the query.
            task: instruction instead of the index's own, for models trained with them.
            options: the fields of ``SearchOptions``: k, mode, fusion, fetch_k, filter, score_threshold, min_dense,
                min_sparse, group_by, group_size, rerank, rerank_k, min_rerank, expand, mmr, explain, exact.
        """
        return self.search_many([query], task=task, **options)[0]

    async def asearch(
        self, query: str, *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[Result]:
        """See ``search``."""
        return (await self.asearch_many([query], task=task, **options))[0]

    def search_many(
        self, queries: Sequence[str], *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """Search for several queries with one forward pass; see ``search``."""
        return block(_traced(queries, self._found(queries, task, self._options(options))))

    async def asearch_many(
        self, queries: Sequence[str], *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """See ``search_many``."""
        return await wait(_traced(queries, self._found(queries, task, self._options(options))))

    def search_vectors(
        self,
        dense: Float32 | None = None,
        sparse: SparseBatch | None = None,
        texts: Sequence[str] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[list[Result]]:
        """Search with existing vectors: dense float32 [n, dim], n sparse rows, or both.

        ``texts`` are the n queries in words, for ``rerank``.
        """
        found = self._found_by_vectors(dense, sparse, texts, self._options(options, dense is not None))
        return block(_traced(texts or (), found))

    async def asearch_vectors(
        self,
        dense: Float32 | None = None,
        sparse: SparseBatch | None = None,
        texts: Sequence[str] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[list[Result]]:
        """See ``search_vectors``."""
        found = self._found_by_vectors(dense, sparse, texts, self._options(options, dense is not None))
        return await wait(_traced(texts or (), found))

    def set_search(self, **options: Unpack[SearchKeywords]) -> None:
        """Set the store's default search options; without arguments, restore TwinVec's defaults.

        All later searches of the store use them, including those of the frameworks and the command; where the store is
        already open elsewhere, once it is reopened. ``twinvec tune`` stores its choice this way.

        Args:
            options: fusion, fetch_k, min_dense and rerank_k of ``SearchOptions``.

        Raises:
            ConfigurationError: other options, or invalid values.
        """
        self.store.set_search(to_stored(options))

    async def aset_search(self, **options: Unpack[SearchKeywords]) -> None:
        """See ``set_search``."""
        await self.store.aset_search(to_stored(options))

    def scoped(self, filter: Filter) -> HybridIndex:
        """Return a view that can neither read nor write outside a filter, such as one tenant's part; see
        ``ScopedStore``."""
        return HybridIndex(self.embedder, ScopedStore(self.store, filter), task=self.task)

    def close(self) -> None:
        """Close the store; the embedder stays open."""
        self.store.close()

    def _options(self, options: SearchKeywords, dense: bool = True) -> SearchOptions:
        return with_stored(options, self.store.config.search, dense=dense)

    async def _found(
        self, queries: Sequence[str], task: Task | str | None, options: SearchOptions
    ) -> list[list[Result]]:
        """Search for texts, as a flow."""
        searching = Searching(self.embedder, self.store, options)
        return await searching.texts(queries, self.task if task is None else task)

    async def _found_by_vectors(
        self, dense: Float32 | None, sparse: SparseBatch | None, texts: Sequence[str] | None, options: SearchOptions
    ) -> list[list[Result]]:
        """Search for vectors, as a flow."""
        return await Searching(self.embedder, self.store, options).vectors(dense, sparse, texts)

    def __enter__(self: _Index) -> _Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _traced(queries: Sequence[str], search: Flow[list[list[Result]]]) -> list[list[Result]]:
    """Record a search in a trace, with its queries if they are known in words."""
    with traced_search(queries) as found:
        results = await search
        found((r.record.id, r.score, r.record.text, r.record.metadata) for each in results for r in each)
        return results

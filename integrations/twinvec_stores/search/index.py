"""HybridIndex: a model and a store combined. Texts go in, ranked records come out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twinvec import BaseEmbedder, SparseBatch, Task
from twinvec.closing import Closing
from twinvec.flows import awaiting, blocking, call, on_thread
from twinvec.tracing import FoundDocument, traced_search
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


class HybridIndex(Closing):
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

    @blocking
    async def add(
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
        given = [uuid.uuid4() for _ in texts] if ids is None else ids
        rows = await on_thread(check_rows, given, texts, metadata, self.store.config)
        embedder, store = self.embedder, self.store
        pool = store.config.token_pool
        asked = {"task": self.task, "show_progress": show_progress, **asking(pool)}
        batch = await call(embedder.embed_documents, embedder.aembed_documents, rows.texts, **asked)
        tokens = kept_tokens(batch, pool)
        records = RecordBatch(rows.ids, rows.texts, batch.dense, batch.sparse, rows.metadata, tokens=tokens)
        await call(store.upsert, store.aupsert, records)
        return rows.ids

    aadd = awaiting(add)

    @blocking
    async def update_metadata(self, ids: Sequence[Any], changes: Mapping[str, Any]) -> list[str]:
        """Update the metadata of records without embedding them again; missing ids are skipped.

        Returns:
            The ids that were found.
        """
        store, names = self.store, [plain_id(id) for id in ids]
        records = await call(store.get, store.aget, names, with_vectors=True)
        changed = [replace(record, metadata={**record.metadata, **changes}) for record in records]
        if changed:
            await call(store.upsert, store.aupsert, RecordBatch.of(changed))
        return [record.id for record in changed]

    aupdate_metadata = awaiting(update_metadata)

    @blocking
    async def search(
        self, query: str, *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[Result]:
        """Return the best records for a query, best first, ties by id.

        Args:
            query: the query.
            task: instruction instead of the index's own, for models trained with them.
            options: the fields of ``SearchOptions``: k, mode, fusion, fetch_k, filter, score_threshold, min_dense,
                min_sparse, group_by, group_size, rerank, rerank_k, min_rerank, expand, mmr, explain, exact.
        """
        return (await call(self.search_many, self.asearch_many, [query], task=task, **options))[0]

    asearch = awaiting(search)

    @blocking
    async def search_many(
        self, queries: Sequence[str], *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """Search for several queries with one forward pass; see ``search``."""
        asked = self._options(options)
        with traced_search(queries) as found:
            results = await self._found(queries, task, asked)
            found(_documents(results))
        return results

    asearch_many = awaiting(search_many)

    @blocking
    async def search_vectors(
        self,
        dense: Float32 | None = None,
        sparse: SparseBatch | None = None,
        texts: Sequence[str] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[list[Result]]:
        """Search with existing vectors: dense float32 [n, dim], n sparse rows, or both.

        ``texts`` are the n queries in words, for ``rerank``.
        """
        asked = self._options(options, dense is not None)
        with traced_search(texts or ()) as found:
            results = await self._found_by_vectors(dense, sparse, texts, asked)
            found(_documents(results))
        return results

    asearch_vectors = awaiting(search_vectors)

    @blocking
    async def set_search(self, **options: Unpack[SearchKeywords]) -> None:
        """Set the store's default search options; without arguments, restore TwinVec's defaults.

        All later searches of the store use them, including those of the frameworks and the command; where the store is
        already open elsewhere, once it is reopened. ``twinvec tune`` stores its choice this way.

        Args:
            options: fusion, fetch_k, min_dense and rerank_k of ``SearchOptions``.

        Raises:
            ConfigurationError: other options, or invalid values.
        """
        await call(self.store.set_search, self.store.aset_search, to_stored(options))

    aset_search = awaiting(set_search)

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


def _documents(results: Sequence[Sequence[Result]]) -> Iterator[FoundDocument]:
    """Yield what a trace shows of each result."""
    return ((r.record.id, r.score, r.record.text, r.record.metadata) for each in results for r in each)

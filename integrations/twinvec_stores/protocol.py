"""HybridStore: the protocol that every engine implements with the same behaviour.

The public methods validate arguments and settle ties; an engine implements those that start with an underscore. Dense
and sparse rankings are fused above this layer, so the same data gives the same ranking on every engine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from twinvec.closing import AsyncClosing
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, on_thread
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Filter, HasId, Not, Or, check_filter, leaves
from twinvec_stores.filters.matching import matches
from twinvec_stores.records import (
    Hit,
    Record,
    RecordBatch,
    StoreQuery,
    check_batch,
    check_ids,
    check_query,
    is_point_id,
)

Progress: TypeAlias = Callable[[float, int], None]
MAX_SCROLL = 10_000
MAX_LIMIT = 2**31 - 1
_SPARE = 16  # hits requested beyond the limit, to detect a tie that crosses it


@dataclass(frozen=True)
class StoreInfo:
    """The result of ``HybridStore.info``.

    Attributes:
        engine: "memory", "embedded", "qdrant", "postgres" or "milvus".
        location: folder, or URL and collection.
        records: number of records.
        has_graph: whether dense search may use an HNSW graph; None if the engine does not say.
        segments: number of parts in which the engine keeps its data; None if it does not say.
        bytes: size on disk; None if it is not on this disk.
        config: the store's configuration.
    """

    engine: str
    location: str
    records: int
    has_graph: bool | None
    segments: int | None
    bytes: int | None
    config: StoreConfig


class HybridStore(AsyncClosing):
    """Dense and sparse vectors with text and metadata, by the caller's string ids.

    Thread safe. Every method has an async twin, prefixed with ``a``. Use it as a context manager, or call ``close``.

    Attributes:
        config: the store's configuration.
        has_indexes: whether it keeps indexes that could differ from the records.
    """

    config: StoreConfig
    has_indexes: bool = True

    @blocking
    async def upsert(self, batch: RecordBatch) -> None:
        """Write records, replacing those with the same ids.

        Raises:
            InvalidRecordError: a record is invalid; nothing of the batch is written in that case.
            StoreEngineError: the engine failed.
        """
        checked = await on_thread(check_batch, batch, self.config)
        if len(checked):
            await self._upsert(checked)

    aupsert = awaiting(upsert)

    @blocking
    async def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> None:
        """Delete by ids or by a filter (``And()`` matches everything); missing ids are not an error."""
        if (ids is None) == (filter is None):
            raise ConfigurationError("pass either ids or filter= to delete; filter=And() deletes everything")
        if ids is None:
            await self._delete_where(await self._condition(check_filter(filter)))
        elif chosen := check_ids(ids):
            await self._delete(chosen)

    adelete = awaiting(delete)

    @blocking
    async def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return the records with these ids, each once, in the order of ``ids``; missing ones are left out."""
        checked = list(dict.fromkeys(check_ids(ids)))
        return await self._get(checked, with_vectors) if checked else []

    aget = awaiting(get)

    @blocking
    async def count(self, filter: Filter | None = None) -> int:
        """Return the number of records, or of those that match."""
        return await self._count(await self._condition(filter))

    acount = awaiting(count)

    @blocking
    async def scroll(
        self, cursor: str | None = None, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> tuple[list[Record], str | None]:
        """Return a page of records and the cursor of the next page, None after the last one.

        Args:
            cursor: returned with the previous page; None for the first page.
            limit: records per page, 1 to 10,000; pages may be shorter if the engine does not support the filter.
            filter: only return matching records.
            with_vectors: also return the vectors.

        Returns:
            Records in the engine's own order. Records that exist throughout appear exactly once.
        """
        condition, most = everything(filter), check_limit(limit, MAX_SCROLL)
        if cursor is not None and not (isinstance(cursor, str) and self._is_cursor(cursor)):
            raise ConfigurationError(f"cursor={cursor!r:.60} does not come from a page of this store")
        if not self._hard(condition):
            return await self._scroll(cursor, most, condition, with_vectors)
        page, following = await self._scroll(cursor, most, self._easy(condition), with_vectors)
        return [record for record in page if matches(condition, record.id, record.metadata)], following

    ascroll = awaiting(scroll)

    def scroll_all(
        self, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> Iterator[list[Record]]:
        """Yield all pages of ``scroll``."""
        cursor, done = None, False
        while not done:
            page, cursor = self.scroll(cursor, limit=limit, filter=filter, with_vectors=with_vectors)
            if page:
                yield page
            done = cursor is None

    async def ascroll_all(
        self, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> AsyncIterator[list[Record]]:
        """See ``scroll_all``."""
        cursor, done = None, False
        while not done:
            page, cursor = await self.ascroll(cursor, limit=limit, filter=filter, with_vectors=with_vectors)
            if page:
                yield page
            done = cursor is None

    @blocking
    async def search(
        self, queries: Sequence[StoreQuery], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """Rank records for each query, in a single call to the engine.

        Args:
            queries: dense and sparse queries in any order. A sparse query finds records that share a key with it; an
                empty one finds nothing.
            limit: hits per query.
            filter: only rank matching records.
            exact: compare with every vector instead of using a graph.

        Returns:
            One ranking per query: best first, ties by id.
        """
        checked = [check_query(query, self.config) for query in queries]
        limit, condition = check_limit(limit), await self._condition(filter)
        if limit > MAX_SCROLL:  # engines allocate memory for as many hits as requested
            limit = min(limit, max(await self._count(condition), 1))
        wanted = limit + _SPARE
        rankings: list[list[Hit]] = [[] for _ in checked]
        rows = list(range(len(checked)))
        while rows:  # until no tie crosses the last hit: engines break ties in their own ways
            answers = await self._search([checked[i] for i in rows], wanted, condition, exact)
            for i, hits in zip(rows, answers, strict=True):
                rankings[i] = sorted(hits, key=lambda hit: (-hit.score, hit.id))
            rows = [
                i for i in rows if len(rankings[i]) == wanted and rankings[i][limit - 1].score == rankings[i][-1].score
            ]
            wanted *= 4
        return [hits[:limit] for hits in rankings]

    asearch = awaiting(search)

    @blocking
    async def document_frequencies(self, keys: Int32, *, filter: Filter | None = None) -> Int64:
        """Return the number of records in which each sparse key occurs, int64 [len(keys)]; for stores with
        ``config.idf``."""
        if not self.config.idf:
            raise ConfigurationError("this store keeps no document frequencies: create it with StoreConfig(idf=True)")
        return await self._document_frequencies(keys, await self._condition(filter))

    adocument_frequencies = awaiting(document_frequencies)

    @blocking
    async def info(self) -> StoreInfo:
        """Describe the store: content, location, size."""
        return await self._info()

    ainfo = awaiting(info)

    @blocking
    async def flush(self) -> None:
        """Return once everything written so far would survive a power failure."""
        await self._flush()

    aflush = awaiting(flush)

    @blocking
    async def optimize(self, progress: Progress | None = None) -> None:
        """Build the graph for fast dense search, and merge what many writes have left behind.

        Args:
            progress: called now and then with the elapsed seconds and the bytes written; by ``aoptimize`` on a thread.
        """
        await self._optimize(progress)

    aoptimize = awaiting(optimize)

    @blocking
    async def set_search(self, search: Mapping[str, Any]) -> None:
        """Store ``StoreConfig.search``; see ``HybridIndex.set_search``, which checks it."""
        await self._configure(replace(self.config, search=dict(search)))

    aset_search = awaiting(set_search)

    @abstractmethod
    def close(self) -> None:
        """Flush and release everything; a second call does nothing."""

    async def aclose(self) -> None:
        """See ``close``."""
        await on_thread(self.close).awaiting()

    # An engine's operations, as flows (``twinvec.flows``): coroutines, or methods that are ``threaded``. Their
    # arguments have been checked; _get returns records in the order of the ids, each at most once.

    @abstractmethod
    def _upsert(self, batch: RecordBatch) -> Awaitable[None]: ...

    @abstractmethod
    def _delete(self, ids: list[str]) -> Awaitable[None]: ...

    @abstractmethod
    def _delete_where(self, filter: Filter) -> Awaitable[None]: ...

    @abstractmethod
    def _get(self, ids: list[str], with_vectors: bool) -> Awaitable[list[Record]]: ...

    @abstractmethod
    def _count(self, filter: Filter) -> Awaitable[int]: ...

    @abstractmethod
    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> Awaitable[tuple[list[Record], str | None]]: ...

    @abstractmethod
    def _search(
        self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool
    ) -> Awaitable[list[list[Hit]]]: ...

    @abstractmethod
    def _document_frequencies(self, keys: Int32, filter: Filter) -> Awaitable[Int64]: ...

    @abstractmethod
    def _info(self) -> Awaitable[StoreInfo]: ...

    @abstractmethod
    def _flush(self) -> Awaitable[None]: ...

    @abstractmethod
    def _optimize(self, progress: Progress | None) -> Awaitable[None]: ...

    @abstractmethod
    def _configure(self, config: StoreConfig) -> Awaitable[None]: ...

    def _answers(self, condition: Filter) -> bool:
        """Return whether the engine supports a condition on one field; otherwise all records are compared here."""
        return True

    def _is_cursor(self, cursor: str) -> bool:
        """Return whether a page of this engine may have returned a cursor."""
        return is_point_id(cursor)

    async def _condition(self, filter: Filter | None) -> Filter:
        """Return a filter that the engine supports: unsupported parts are replaced by the ids that match."""
        condition = everything(filter)
        hard = self._hard(condition)
        found: dict[int, list[str]] = {id(leaf): [] for leaf in hard}
        cursor, done = None, not hard
        while not done:
            page, cursor = await self._scroll(cursor, 1000, self._easy(condition), False)
            for leaf in hard:
                found[id(leaf)] += [record.id for record in page if matches(leaf, record.id, record.metadata)]
            done = cursor is None
        return _replaced(condition, {leaf: HasId(ids) for leaf, ids in found.items()})

    def _hard(self, condition: Filter) -> list[Filter]:
        return [leaf for leaf in leaves(condition) if not self._answers(leaf)]

    def _easy(self, condition: Filter) -> Filter:
        """Return a filter that the engine supports and that holds wherever the condition does."""
        parts = condition.filters if isinstance(condition, And) else (condition,)
        return And(*(part for part in parts if not self._hard(part)))


def check_limit(limit: int, most: int = MAX_LIMIT, name: str = "limit") -> int:
    """Check that a limit is an integer of at least 1.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise ConfigurationError(f"{name}={limit!r} must be an integer from 1 to {most}")
    return limit


def everything(filter: Filter | None) -> Filter:
    """Return the filter; for None, one that matches everything."""
    return And() if filter is None else check_filter(filter)


def _replaced(condition: Filter, by: Mapping[int, Filter]) -> Filter:
    if isinstance(condition, (And, Or)):
        return type(condition)(*(_replaced(part, by) for part in condition.filters))
    return Not(_replaced(condition.filter, by)) if isinstance(condition, Not) else by.get(id(condition), condition)

"""HybridStore: the protocol that every engine fulfils in the same way.

The public methods validate and settle ties; an engine implements the ones that start with an underscore. Fusion of
dense and sparse rankings lives above, so the same data gives the same ranking on every engine.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from twinvec.errors import ConfigurationError
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Filter, check_filter
from twinvec_stores.records import Hit, Record, RecordBatch, StoreQuery, check_batch, check_ids, check_query

_Store = TypeVar("_Store", bound="HybridStore")
MAX_SCROLL = 10_000
_SPARE = 16  # hits asked for beyond the limit, to see whether a tie goes across it


@dataclass(frozen=True)
class StoreInfo:
    """What ``HybridStore.info`` tells.

    Attributes:
        engine: "memory", "embedded" or "qdrant".
        location: folder, or url and collection.
        records: how many there are.
        has_graph: dense search may walk an HNSW graph; None where the engine does not tell.
        segments: parts that the engine keeps its data in; None where it does not tell.
        bytes: size on disk, None where it is not on this disk.
        config: what the store was made with.
    """

    engine: str
    location: str
    records: int
    has_graph: bool | None
    segments: int | None
    bytes: int | None
    config: StoreConfig


class HybridStore(ABC):
    """Dense and sparse vectors with text and metadata, by the caller's string ids.

    Thread safe. Every method has an async twin with the same name after an ``a``. Use as a context manager, or call
    ``close``.
    """

    config: StoreConfig

    def upsert(self, batch: RecordBatch) -> None:
        """Write records; those with known ids are replaced.

        Raises:
            InvalidRecordError: a record that does not fit; then nothing of the batch is written.
            StoreEngineError: the engine failed.
        """
        if len(checked := check_batch(batch, self.config)):
            self._upsert(checked)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> None:
        """Delete by ids or by a filter (``And()`` matches everything); missing ids are no error."""
        chosen = choose(ids, filter)
        if not isinstance(chosen, list):
            self._delete_where(chosen)
        elif chosen:
            self._delete(chosen)

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return the records with these ids, each once, in the order of ``ids``; missing ones are left out."""
        checked = check_ids(ids)
        return self._get(list(dict.fromkeys(checked)), with_vectors) if checked else []

    def count(self, filter: Filter | None = None) -> int:
        """Return how many records there are, or match."""
        return self._count(everything(filter))

    def scroll(
        self, cursor: str | None = None, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> tuple[list[Record], str | None]:
        """Return a page of records and the cursor of the next page, None after the last one.

        Args:
            cursor: what the page before returned; None for the first page.
            limit: records a page, 1 to 10,000.
            filter: only records that match.
            with_vectors: return the vectors too.

        Returns:
            Records in an order of the engine's own. Records that are there all the time appear exactly once.
        """
        return self._scroll(cursor, check_limit(limit, MAX_SCROLL), everything(filter), with_vectors)

    def scroll_all(
        self, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> Iterator[list[Record]]:
        """Yield all pages of ``scroll``."""
        cursor = None
        while True:
            page, cursor = self.scroll(cursor, limit=limit, filter=filter, with_vectors=with_vectors)
            if page:
                yield page
            if cursor is None:
                return

    def search(
        self, queries: Sequence[StoreQuery], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """Rank records for each query, in one call of the engine.

        Args:
            queries: dense and sparse queries in any order. A sparse query finds records that share a key with it;
                an empty one finds nothing.
            limit: hits per query.
            filter: only records that match.
            exact: compare with every vector instead of walking a graph.

        Returns:
            One ranking per query: best first, ties by id.
        """
        rounds, condition = search_rounds(queries, limit, self.config), everything(filter)
        step = next(rounds)
        while not step.done:
            step = rounds.send(self._search(step.queries, step.limit, condition, exact))
        return step.rankings

    def document_frequencies(self, keys: Int32) -> Int64:
        """Return in how many records each sparse key appears, int64 [len(keys)]; for stores with ``config.idf``."""
        self._need_idf()
        return self._document_frequencies(keys)

    @abstractmethod
    def info(self) -> StoreInfo:
        """Return what the store holds and where."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written so far survives a loss of power."""

    @abstractmethod
    def optimize(self, progress: Callable[[float, int], None] | None = None) -> None:
        """Build the graph for fast dense search, and merge what many writes have left behind.

        Args:
            progress: called now and then with the seconds passed and the bytes written.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and release everything; a second call does nothing."""

    async def aupsert(self, batch: RecordBatch) -> None:
        """See ``upsert``."""
        await asyncio.to_thread(self.upsert, batch)

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> None:
        """See ``delete``."""
        await asyncio.to_thread(self.delete, ids, filter=filter)

    async def aget(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """See ``get``."""
        return await asyncio.to_thread(self.get, ids, with_vectors=with_vectors)

    async def acount(self, filter: Filter | None = None) -> int:
        """See ``count``."""
        return await asyncio.to_thread(self.count, filter)

    async def ascroll(
        self, cursor: str | None = None, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> tuple[list[Record], str | None]:
        """See ``scroll``."""
        return await asyncio.to_thread(self.scroll, cursor, limit=limit, filter=filter, with_vectors=with_vectors)

    async def ascroll_all(
        self, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> AsyncIterator[list[Record]]:
        """See ``scroll_all``."""
        cursor = None
        while True:
            page, cursor = await self.ascroll(cursor, limit=limit, filter=filter, with_vectors=with_vectors)
            if page:
                yield page
            if cursor is None:
                return

    async def asearch(
        self, queries: Sequence[StoreQuery], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """See ``search``."""
        return await asyncio.to_thread(self.search, queries, limit=limit, filter=filter, exact=exact)

    async def adocument_frequencies(self, keys: Int32) -> Int64:
        """See ``document_frequencies``."""
        return await asyncio.to_thread(self.document_frequencies, keys)

    async def ainfo(self) -> StoreInfo:
        """See ``info``."""
        return await asyncio.to_thread(self.info)

    async def aflush(self) -> None:
        """See ``flush``."""
        await asyncio.to_thread(self.flush)

    async def aoptimize(self, progress: Callable[[float, int], None] | None = None) -> None:
        """See ``optimize``; ``progress`` is called in a thread."""
        await asyncio.to_thread(self.optimize, progress)

    async def aclose(self) -> None:
        """See ``close``."""
        await asyncio.to_thread(self.close)

    @abstractmethod
    def _upsert(self, batch: RecordBatch) -> None: ...

    @abstractmethod
    def _delete(self, ids: list[str]) -> None: ...

    @abstractmethod
    def _delete_where(self, filter: Filter) -> None: ...

    @abstractmethod
    def _get(self, ids: list[str], with_vectors: bool) -> list[Record]: ...

    @abstractmethod
    def _count(self, filter: Filter) -> int: ...

    @abstractmethod
    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]: ...

    @abstractmethod
    def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]: ...

    @abstractmethod
    def _document_frequencies(self, keys: Int32) -> Int64: ...

    def _need_idf(self) -> None:
        if not self.config.idf:
            raise ConfigurationError("this store keeps no document frequencies: make it with StoreConfig(idf=True)")

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self: _Store) -> _Store:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@dataclass(frozen=True)
class Step:
    """What a search asks of its engine next, or its result."""

    queries: list[StoreQuery]
    limit: int = 0
    rankings: list[list[Hit]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Return whether nothing is left to ask."""
        return not self.queries


def search_rounds(
    queries: Sequence[StoreQuery], limit: int, config: StoreConfig
) -> Generator[Step, list[list[Hit]], None]:
    """Ask for more hits than wanted until no tie goes across the last one: engines break ties in orders of their own.

    Yields:
        What to ask next, answered by ``send`` with one list of hits per query; last, a step that is done.
    """
    checked = [check_query(query, config) for query in queries]
    wanted = check_limit(limit) + _SPARE
    rankings: list[list[Hit]] = [[] for _ in checked]
    rows = list(range(len(checked)))
    while rows:
        answers = yield Step([checked[i] for i in rows], wanted)
        for i, hits in zip(rows, answers, strict=True):
            rankings[i] = sorted(hits, key=lambda hit: (-hit.score, hit.id))
        rows = [i for i in rows if len(rankings[i]) == wanted and rankings[i][limit - 1].score == rankings[i][-1].score]
        wanted *= 4
    yield Step([], 0, [hits[:limit] for hits in rankings])


def check_limit(limit: int, most: int | None = None) -> int:
    """Return a limit if it is a whole number of at least 1.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1 or (most is not None and limit > most):
        raise ConfigurationError(f"limit={limit!r} must be a whole number from 1{f' to {most}' if most else ''}")
    return limit


def choose(ids: Sequence[str] | None, filter: Filter | None) -> list[str] | Filter:
    """Return what to delete: checked ids, or the filter.

    Raises:
        ConfigurationError: both or none were given.
    """
    if (ids is None) == (filter is None):
        raise ConfigurationError("delete by ids or by filter=, one of them; filter=And() deletes everything")
    return check_ids(ids) if ids is not None else check_filter(filter)


def everything(filter: Filter | None) -> Filter:
    """Return the filter, one that matches everything for None."""
    return And() if filter is None else check_filter(filter)

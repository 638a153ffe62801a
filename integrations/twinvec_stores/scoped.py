"""ScopedStore: a view of a store that can neither read nor write outside a filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twinvec.errors import ConfigurationError, InvalidRecordError
from twinvec.flows import call
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Eq, Filter, check_filter
from twinvec_stores.filters.fields import field_values, parse_field
from twinvec_stores.filters.matching import matches
from twinvec_stores.protocol import HybridStore, Progress, StoreInfo
from twinvec_stores.records import Hit, Record, RecordBatch, StoreQuery


class ScopedStore(HybridStore):
    """The records of a store that match a filter, as a store of their own.

    Every search, count, page, get and deletion is limited to the filter, and so are document frequencies (BM25's idf).
    A record that contradicts the filter is rejected, and so is one whose id belongs to a record outside. If the filter
    is ``Eq``, or an ``And`` of several, records without these fields get them. ``close`` leaves the store open.
    """

    def __init__(self, store: HybridStore, scope: Filter) -> None:
        """Create a view; see ``HybridIndex.scoped``."""
        self._store, self._scope = store, check_filter(scope)
        self.config = store.config
        self.has_indexes = store.has_indexes
        self._defaults: dict[str, Any] = {}
        for part in scope.filters if isinstance(scope, And) else (scope,):
            if isinstance(part, Eq) and len(keys := parse_field(part.field)) == 1:
                self._defaults[keys[0].key] = part.value
        if scope == And():
            raise ConfigurationError("this scope matches everything: use the store itself")

    @property
    def scope(self) -> Filter:
        """Return the filter."""
        return self._scope

    def close(self) -> None:
        """Do nothing: the store belongs to its owner."""

    def __repr__(self) -> str:
        return f"ScopedStore({self._store!r}, {self._scope!r})"

    def _answers(self, condition: Filter) -> bool:
        return self._store._answers(condition)

    def _is_cursor(self, cursor: str) -> bool:
        return self._store._is_cursor(cursor)

    async def _within(self, filter: Filter) -> Filter:
        return await self._store._condition(self._scope if filter == And() else And(self._scope, filter))

    def _has(self, record: Record) -> bool:
        return matches(self._scope, record.id, record.metadata)

    async def _upsert(self, batch: RecordBatch) -> None:
        assert batch.metadata is not None
        filled = [self._filled(metadata) for metadata in batch.metadata]
        for id, metadata in zip(batch.ids, filled, strict=True):
            if not matches(self._scope, id, metadata):
                raise InvalidRecordError(f"its metadata is outside the scope {self._scope!r}", id=id)
        for record in await self._store._get(list(batch.ids), False):
            if not self._has(record):
                raise InvalidRecordError("its id belongs to a record outside the scope", id=record.id)
        await call(self._store.upsert, self._store.aupsert, replace(batch, metadata=filled))

    def _filled(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        lacking = {key: value for key, value in self._defaults.items() if not field_values(metadata, f'"{key}"')}
        return {**metadata, **lacking}

    async def _delete(self, ids: list[str]) -> None:
        inside = [record.id for record in await self._store._get(ids, False) if self._has(record)]
        if inside:
            await self._store._delete(inside)

    async def _delete_where(self, filter: Filter) -> None:
        await self._store._delete_where(await self._within(filter))

    async def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        return [record for record in await self._store._get(ids, with_vectors) if self._has(record)]

    async def _count(self, filter: Filter) -> int:
        return await self._store._count(await self._within(filter))

    async def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        both = self._scope if filter == And() else And(self._scope, filter)
        scroll, ascroll = self._store.scroll, self._store.ascroll
        return await call(scroll, ascroll, cursor, limit=limit, filter=both, with_vectors=with_vectors)

    async def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        return await self._store._search(queries, limit, await self._within(filter), exact)

    async def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        return await self._store._document_frequencies(keys, await self._within(filter))

    async def _info(self) -> StoreInfo:
        return replace(await self._store._info(), records=await self._count(And()))

    async def _flush(self) -> None:
        await self._store._flush()

    async def _configure(self, config: StoreConfig) -> None:
        raise ConfigurationError("only the store's owner may change how it is searched: use the store itself")

    async def _optimize(self, progress: Progress | None) -> None:
        await self._store._optimize(progress)

"""EmbeddedStore: Qdrant's engine within this process, in a folder."""

from __future__ import annotations

import functools
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.errors import ConfigurationError, StoreClosedError, StoreReadOnlyError
from twinvec.flows import on_thread, threaded
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.points import Dialect, to_hits, to_record
from twinvec_stores.filters.conditions import And, Filter
from twinvec_stores.protocol import HybridStore, Progress, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, point_id

if TYPE_CHECKING:
    from twinvec_stores.engines.embedded.folder import Folder

_CHUNK = 512  # records per operation of the engine


class EmbeddedStore(HybridStore):
    """A store in a folder, on Qdrant Edge (``pip install 'twinvec[embedded]'``).

    One process writes; within it, all EmbeddedStores of a folder share one engine. Completed calls of ``upsert`` and
    ``delete`` survive a killed process immediately, and a power failure after ``flush``. Any number of other processes
    can read with ``read_only=True``: each has its own copy, as of its opening or its last ``refresh``.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: StoreConfig | None = None, *, read_only: bool = False
    ) -> None:
        """Open a store, or create one.

        Args:
            path: the store's folder.
            config: what the store contains. An existing store must have been created with the same; otherwise it is
                created. None: open whatever exists.
            read_only: read a copy, even while others have the store open. The copy is inside the folder and is removed
                by ``close``, or by the next reader if this process was killed.

        Raises:
            StoreNotFoundError: there is no store, and ``config`` is None or the store is read-only.
            StoreLockedError: another process has it open; for a reader: it is written to without a pause.
            FingerprintMismatchError: it contains another model's vectors.
            StoreMismatchError: it was created with other settings.
            StoreEngineError: it cannot be read.
        """
        try:
            import qdrant_edge
        except ModuleNotFoundError:
            raise ConfigurationError("stores in a folder need Qdrant Edge: pip install 'twinvec[embedded]'") from None
        self.path, self.read_only = Path(path), read_only
        self._edge: Any = qdrant_edge
        self._refreshing = threading.Lock()
        self._hold(config)
        self._dialect = Dialect(qdrant_edge, self.config)

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._release()

    def refresh(self) -> None:
        """Read what has been written since the store was opened or refreshed; does nothing if the store is writable."""
        if not self.read_only:
            return
        with self._refreshing:
            self._open()
            before = self._release
            self._hold(self.config)
            before()

    async def arefresh(self) -> None:
        """See ``refresh``."""
        await on_thread(self.refresh).awaiting()

    def _hold(self, config: StoreConfig | None) -> None:
        from twinvec_stores.engines.embedded.folder import Folder
        from twinvec_stores.engines.embedded.snapshots import close_snapshot, open_snapshot

        folder = open_snapshot(self.path, config) if self.read_only else Folder.acquire(self.path, config)
        give_back = functools.partial(close_snapshot, folder) if self.read_only else folder.release
        self._folder, self._release, self.config = folder, weakref.finalize(self, give_back), folder.config

    def _run(self, operation: Callable[[Any], Any]) -> Any:
        return self._ask(lambda folder: folder.run(operation))

    def _ask(self, question: Callable[[Folder], Any]) -> Any:
        folder = self._open()
        try:
            return question(folder)
        except StoreClosedError:
            if folder is self._open():
                raise
            return self._ask(question)  # refreshed in the meantime

    def _open(self) -> Folder:
        if not self._release.alive:
            raise StoreClosedError(f"the store {self.path} is closed")
        return self._folder

    def _writable(self) -> Folder:
        if self.read_only:
            raise StoreReadOnlyError(f"{self.path} was opened with read_only=True: open it without read_only to write")
        return self._open()

    @threaded
    def _upsert(self, batch: RecordBatch) -> None:
        points = self._dialect.points(batch)
        sizes = [_size(record) for record in batch]
        for start in range(0, len(points), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._writable().write(self._edge.UpdateOperation.upsert_points(points[chunk]), sum(sizes[chunk]))

    @threaded
    def _delete(self, ids: list[str]) -> None:
        self._writable().write(self._edge.UpdateOperation.delete_points([point_id(id) for id in ids]), 0)

    @threaded
    def _delete_where(self, filter: Filter) -> None:
        self._writable().write(self._edge.UpdateOperation.delete_points_by_filter(self._dialect.filter(filter)), 0)

    @threaded
    def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        payload = self._dialect.payload(with_vectors=with_vectors)
        points = self._run(lambda shard: shard.retrieve([point_id(id) for id in ids], payload, with_vectors))
        records = {record.id: record for record in (to_record(point, self.config) for point in points)}
        return [records[id] for id in ids if id in records]

    @threaded
    def _count(self, filter: Filter) -> int:
        return self._counted(filter)

    def _counted(self, filter: Filter) -> int:
        request = self._edge.CountRequest
        if filter == And():
            return int(self._ask(lambda folder: folder.count(None, lambda: request(exact=True))))
        return int(self._run(lambda shard: shard.count(request(exact=True, filter=self._dialect.filter(filter)))))

    @threaded
    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        request = self._edge.ScrollRequest(
            offset=cursor,
            limit=limit,
            filter=self._filter(filter),
            with_payload=self._dialect.payload(with_vectors=with_vectors),
            with_vector=with_vectors,
        )
        points, following = self._run(lambda shard: shard.scroll(request))
        return [to_record(point, self.config) for point in points], None if following is None else str(following)

    @threaded
    def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        asked = [i for i, query in enumerate(queries) if isinstance(query, DenseQuery) or len(query.vector)]
        requests = [self._request(queries[i], limit, filter, exact) for i in asked]
        found: list[list[Hit]] = [[] for _ in queries]
        if requests:
            batch = self._edge.QueryBatchRequest(requests)
            for i, points in zip(asked, self._run(lambda shard: shard.query_batch(batch)), strict=True):
                found[i] = to_hits(points)
        return found

    def _request(self, query: StoreQuery, limit: int, filter: Filter, exact: bool) -> Any:
        vector, name = self._dialect.query(query)
        condition = self._filter(filter)
        return self._edge.QueryRequest(
            limit=limit,
            query=self._edge.Query.Nearest(vector, using=name),
            prefetches=self._dialect.prefetch(query, limit, condition, exact=exact),
            filter=condition,
            params=self._dialect.parameters(query, exact=exact),
            with_payload=["id"],
        )

    @threaded
    def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        def count(key: int) -> int:
            request = self._edge.CountRequest(exact=True, filter=self._dialect.term(key, filter))
            if filter == And():
                return int(self._ask(lambda folder: folder.count(key, lambda: request)))
            return int(self._run(lambda shard: shard.count(request)))

        return np.array([count(key) for key in keys.tolist()], dtype=np.int64)

    @threaded
    def _info(self) -> StoreInfo:
        info = self._run(lambda shard: shard.info())
        return StoreInfo(
            engine="embedded",
            location=str(self.path.expanduser().resolve()),
            records=self._counted(And()),
            has_graph=self._folder.has_graph(),
            segments=info.segments_count,
            bytes=self._folder.size(),
            config=self.config,
        )

    @threaded
    def _flush(self) -> None:
        self._ask(lambda folder: folder.flush())

    @threaded
    def _optimize(self, progress: Progress | None) -> None:
        # in child processes, for seconds to minutes, during which writes wait; a crash loses nothing
        self._writable().optimize(progress)

    @threaded
    def _configure(self, config: StoreConfig) -> None:
        self._writable().configure(config)
        self.config = config

    def _answers(self, condition: Filter) -> bool:
        return self._dialect.answers(condition)

    def _filter(self, filter: Filter) -> Any:
        return None if filter == And() else self._dialect.filter(filter)

    def __repr__(self) -> str:
        how = ", read_only=True" if self.read_only else ""
        return f"EmbeddedStore({str(self.path)!r}, model={self.config.model!r}, dim={self.config.dim}{how})"

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        path = str(self.path.expanduser().resolve())
        return functools.partial(type(self), path, read_only=self.read_only), ()


class ModelStore(EmbeddedStore):
    """The store of one model's vectors in a folder, whichever model serves; see ``models``."""

    def _hold(self, config: StoreConfig | None) -> None:
        from twinvec_stores.engines.embedded.folder import Folder

        folder = Folder.acquire_itself(self.path.expanduser().resolve(), config)
        self._folder, self._release, self.config = folder, weakref.finalize(self, folder.release), folder.config


def _size(record: Record) -> int:
    """Return the approximate size of a record in bytes."""
    vectors = (0 if record.dense is None else record.dense.nbytes) + 12 * len(record.sparse or ())
    return vectors + len(record.text.encode()) + len(json.dumps([record.metadata, record.provenance]))

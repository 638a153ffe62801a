"""PostgresStore: tables in a PostgreSQL database, searched by pgvector."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import psycopg
from psycopg import errors
from psycopg.types.json import Json
from psycopg_pool import PoolClosed, PoolTimeout

from twinvec.errors import StoreClosedError, StoreEngineError, StoreReadOnlyError
from twinvec.flows import Flow, on_thread, threaded
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.postgres.address import Address
from twinvec_stores.engines.postgres.connections import Pools, either, entered
from twinvec_stores.engines.postgres.filters import answers
from twinvec_stores.engines.postgres.graphs import graph_of
from twinvec_stores.engines.postgres.rows import Rows, to_record, unescaped
from twinvec_stores.engines.postgres.schema import Schema
from twinvec_stores.engines.postgres.searching import GRAPH, rank
from twinvec_stores.engines.postgres.statements import Statement
from twinvec_stores.filters.conditions import And, Filter, HasId
from twinvec_stores.protocol import HybridStore, Progress, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_ATTEMPTS = 20  # of a transaction that met another one, which succeeded in its place
_MET_ANOTHER = (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)
_REPORT_SECONDS = 1.0


class PostgresStore(HybridStore):
    """Tables in a PostgreSQL database (``pip install 'twinvec[postgres]'``), 14 or newer, with pgvector 0.8 or newer.

    The collection is a schema of its own. Any number of processes can read and write; every ``upsert`` and ``delete``
    is one transaction. The async twins use psycopg's async connections and never block the event loop. Dense search is
    exact until ``optimize`` has built a graph, which later writes keep up to date. A graph has at most 4,000
    dimensions, above 2,000 in half precision, with ``quantization`` their signs ("binary") or the first of them;
    scores are always those of the full vectors.
    """

    _states: tuple[str, ...] = ("serving",)  # in which its tables may be written

    def __init__(
        self,
        url: str,
        collection: str = "twinvec",
        config: StoreConfig | None = None,
        *,
        pool_size: int = 8,
        timeout: float = 30.0,
    ) -> None:
        """Open a store, or create it.

        Args:
            url: "postgresql://user@host:5432/database"; its parameters are libpq's, such as ``sslmode=verify-full``.
                TLS is required of other machines unless there is an ``sslmode``. A password may also come from
                ``PGPASSWORD`` or ``~/.pgpass``; it is never shown.
            collection: the schema.
            config: what the store contains; see ``EmbeddedStore``.
            pool_size: most connections of this process, and of each event loop.
            timeout: seconds to wait for a connection.

        Raises:
            ConfigurationError: the URL or the collection is invalid.
            StoreNotFoundError: the store does not exist and ``config`` is None.
            FingerprintMismatchError: it contains another model's vectors.
            StoreMismatchError: it was created with other settings, or the schema not by TwinVec.
            StoreEngineError: the server cannot be reached, refused, or has no pgvector.
        """
        self._address = Address.parse(url, timeout)
        self.url, self.collection = self._address.shown, collection
        self._place = f"{self.url}, collection {collection}"
        self._schema = Schema(collection, self._place)
        self._pools = Pools(self._address.conninfo, pool_size, timeout)
        self._closed = False
        with self._connected() as connection:
            self.config = self._open(connection, config)
            self._has_graph = self._schema.has_graph(connection)

    def _open(self, connection: psycopg.Connection[Any], config: StoreConfig | None) -> StoreConfig:
        return self._schema.open(connection, config)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._closed = True
        self._pools.close()

    async def aclose(self) -> None:
        """See ``close``."""
        self._closed = True
        await self._pools.aclose()
        await on_thread(self._pools.close).awaiting()

    async def _upsert(self, batch: RecordBatch) -> None:
        rows = await on_thread(Rows, batch, self.config)
        deletion = self._deletion(HasId(batch.ids))
        numbering = self._statement("SELECT nextval({sequence_name}) FROM generate_series(1, {n})", n=len(rows))
        copies = self._schema.copies(self.config)

        async def replace(connection: Any) -> None:
            async with entered(connection.transaction()):
                await self._claim(connection)
                await deletion.execute(connection)
                numbers = [number for (number,) in await numbering.fetch(connection)]
                async with entered(connection.cursor().copy(copies["records"])) as copy:
                    for row in rows.records(numbers):
                        await either(copy.write_row, row)
                if self.config.sparse:
                    async with entered(connection.cursor().copy(copies["terms"])) as copy:
                        await either(copy.write, rows.terms(numbers))

        await self._run(replace)

    async def _delete(self, ids: list[str]) -> None:
        await self._delete_where(HasId(ids))

    async def _delete_where(self, filter: Filter) -> None:
        deletion = self._deletion(filter)

        async def delete(connection: Any) -> None:
            async with entered(connection.transaction()):
                await self._claim(connection)
                await deletion.execute(connection)

        await self._run(delete)

    async def _claim(self, connection: Any) -> None:
        """Make sure that no other model serves until the end of the transaction, which a switch waits for."""
        await either(connection.execute, self._schema.text("SELECT pg_advisory_xact_lock_shared({writing})"))
        asked = self._schema.text("SELECT FROM {store} WHERE {writable}")
        cursor = await either(connection.execute, asked, [list(self._states)])
        if await either(cursor.fetchone) is None:
            raise StoreReadOnlyError(f"{self._place} was re-embedded with another model: open the store again")

    def _deletion(self, filter: Filter) -> Statement:
        if not self.config.sparse:
            return self._statement("DELETE FROM {records} WHERE {where}", where=filter)
        return self._statement(
            "WITH gone AS (DELETE FROM {records} WHERE {where} RETURNING record, keys) DELETE FROM {terms} t "
            "USING gone, unnest(gone.keys) AS k (key) WHERE t.key = k.key AND t.record = gone.record",
            where=filter,
        )

    async def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        content = self._schema.content(self.config, with_vectors=with_vectors)
        rows = await self._fetch("SELECT {content} FROM {records} WHERE {where}", content=content, where=HasId(ids))
        records = [to_record(row, self.config, with_vectors=with_vectors) for row in rows]
        found = {record.id: record for record in records}
        return [found[id] for id in ids if id in found]

    async def _count(self, filter: Filter) -> int:
        [(n,)] = await self._fetch("SELECT count(*) FROM {records} WHERE {where}", where=filter)
        return int(n)

    async def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        rows = await self._fetch(
            "SELECT point, {content} FROM {records} "
            "WHERE ({cursor}::uuid IS NULL OR point >= {cursor}::uuid) AND {where} ORDER BY point LIMIT {limit}",
            content=self._schema.content(self.config, with_vectors=with_vectors),
            cursor=cursor,
            where=filter,
            limit=limit + 1,
        )
        page = [to_record(row, self.config, with_vectors=with_vectors) for _, *row in rows[:limit]]
        return page, str(rows[limit][0]) if len(rows) > limit else None

    async def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        found = await self._ranked(queries, limit, filter, exact=exact)
        # a graph may run out of candidates before enough records have matched
        short = [i for i, query in enumerate(queries) if isinstance(query, DenseQuery) and len(found[i]) < limit]
        if short and self._has_graph and not exact:
            whole = await self._ranked([queries[i] for i in short], limit, filter, exact=True)
            for i, hits in zip(short, whole, strict=True):
                found[i] = hits
        return found

    async def _ranked(self, queries: list[StoreQuery], limit: int, filter: Filter, *, exact: bool) -> list[list[Hit]]:
        statement = Statement(self._schema, self.config)
        graph = graph_of(self.config) if self._has_graph and not exact else None
        statement.text = rank(statement, queries, limit, filter, graph)
        found: list[list[Hit]] = [[] for _ in queries]
        rows = await self._run(statement.fetch)
        for number, id, score in rows:
            if number != GRAPH:
                found[number].append(Hit(unescaped(id), score))
        self._has_graph = any(number == GRAPH for number, _, _ in rows)
        return found

    async def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        counted = "SELECT key, count(*) FROM {terms} WHERE key = ANY({keys}::integer[]) GROUP BY key"
        if filter != And():
            counted = (
                "WITH matching AS MATERIALIZED (SELECT record FROM {records} WHERE {where}) SELECT key, count(*) "
                "FROM {terms} JOIN matching USING (record) WHERE key = ANY({keys}::integer[]) GROUP BY key"
            )
        known = dict(await self._fetch(counted, keys=keys.tolist(), where=filter))
        return np.array([known.get(key, 0) for key in keys.tolist()], dtype=np.int64)

    async def _info(self) -> StoreInfo:
        [(self._has_graph,)] = await self._fetch("SELECT {has_graph}")
        return StoreInfo("postgres", self._place, await self._count(And()), self._has_graph, None, None, self.config)

    async def _flush(self) -> None:
        async def commit(connection: Any) -> None:
            async with entered(connection.transaction()):
                # where the server acknowledges before it writes, this commit waits for everything before it
                await either(connection.execute, "SET LOCAL synchronous_commit = on")
                await either(connection.execute, "SELECT pg_current_xact_id()")

        await self._run(commit)

    async def _configure(self, config: StoreConfig) -> None:
        await self._run(
            self._statement(
                "UPDATE {store} SET config = {config} WHERE model = {model}", config=Json(config.to_dict())
            ).execute
        )
        self.config = config

    @threaded
    def _optimize(self, progress: Progress | None) -> None:
        with self._connected() as connection, self._reporting(progress):
            connection.add_notice_handler(self._advise)
            self._schema.optimize(connection, self.config)
            self._has_graph = self._schema.has_graph(connection)

    def _advise(self, notice: errors.Diagnostic) -> None:
        """Say when a graph outgrows the server's memory for it, and so takes many times as long."""
        if "maintenance_work_mem" in (notice.message_hint or ""):
            _logger.warning(
                "%s: %s; it takes much longer from here on. An address can ask for more, such as "
                "?options=-c%%20maintenance_work_mem%%3D4GB",
                self._place,
                notice.message_primary,
            )

    def _answers(self, condition: Filter) -> bool:
        return answers(condition, self.config)

    def _statement(self, text: str, **parts: Any) -> Statement:
        statement = Statement(self._schema, self.config)
        statement.text = statement.compose(text, **parts)
        return statement

    async def _fetch(self, text: str, **parts: Any) -> list[Any]:
        return await self._run(self._statement(text, **parts).fetch)

    async def _run(self, work: Callable[[Any], Flow[_T]]) -> _T:
        """Do something on a connection: again if another transaction was in the way, or the server restarted."""
        if self._closed:
            raise StoreClosedError(f"the store {self._place} is closed")
        with self._typed_errors():
            for attempt in range(_ATTEMPTS):
                pool = await self._pools.pool()
                try:
                    async with entered(pool.connection()) as connection:
                        return await work(connection)
                except _MET_ANOTHER:
                    if attempt == _ATTEMPTS - 1:
                        raise
                except (PoolTimeout, PoolClosed):
                    raise
                except psycopg.OperationalError:
                    if attempt or not connection.closed:
                        raise
                    await either(pool.check)  # drops what else the restart has left
        raise AssertionError("every attempt returns or raises")

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        """Give a connection of its own, for what is not a transaction."""
        if self._closed:
            raise StoreClosedError(f"the store {self._place} is closed")
        with self._typed_errors(), psycopg.connect(self._address.conninfo, autocommit=True) as connection:
            yield connection

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except PoolClosed:
            raise StoreClosedError(f"the store {self._place} is closed") from None
        except psycopg.Error as error:
            message = " ".join(str(error).split())
            raise StoreEngineError(f"{self._place}: {type(error).__name__}: {message:.500}") from error

    @contextmanager
    def _reporting(self, progress: Progress | None) -> Iterator[None]:
        """Report how long something takes, and how large the graph is by now."""
        start, done = time.monotonic(), threading.Event()

        def report() -> None:
            while progress is not None and not done.wait(_REPORT_SECONDS):
                with suppress(StoreEngineError), self._connected() as connection:  # the work itself says what is wrong
                    progress(time.monotonic() - start, self._schema.graph_bytes(connection))

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()

    def __repr__(self) -> str:
        return f"PostgresStore({self.url!r}, {self.collection!r}, model={self.config.model!r}, dim={self.config.dim})"

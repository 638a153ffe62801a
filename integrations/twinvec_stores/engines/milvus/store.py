"""MilvusStore: a collection on a Milvus server or cluster, through pymilvus."""

from __future__ import annotations

import asyncio
import heapq
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pymilvus import MilvusClient, MilvusException
from pymilvus.client.types import LoadState

from twinvec.errors import StoreClosedError, StoreEngineError, StoreMismatchError, StoreNotFoundError
from twinvec.flows import Call, call, on_thread, together
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.engines.milvus.address import Address
from twinvec_stores.engines.milvus.expressions import EVERYTHING, answers, at_points, expression, undecided
from twinvec_stores.engines.milvus.rows import DENSE, SPARSE, content, to_record, to_rows
from twinvec_stores.engines.milvus.schema import PROPERTY, SERVING, check_name, columns, indexes
from twinvec_stores.engines.serving import ModelStore, ServedStore, Serving
from twinvec_stores.filters.conditions import And, Filter, leaves
from twinvec_stores.filters.matching import matches
from twinvec_stores.protocol import Progress, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, point_id

Consistency = Literal["Strong", "Session", "Bounded", "Eventually"]
_CHUNK = 100  # records per writing request, whose size servers limit to 64 MiB
_PAGE, _PAGE_WITH_VECTORS = 1000, 200  # records per reading request
_IDS = 10_000  # per deleting request
_MAX_HITS = 16_384  # that a server returns for a query
_EF = 256  # candidates of a graph search
_NOT_LOADED = 101
_POLL_SECONDS = 1.0


class MilvusStore(ServedStore):
    """A collection on a Milvus server or cluster, version 2.5 or newer (``pip install 'twinvec[milvus]'``).

    Writes are durable when they return. Dense vectors have an HNSW graph, which the server builds of full segments in
    the background and of all on ``optimize``; sparse ones an inverted index with exact inner products. ``exact=True``
    reads every vector, as Milvus has no exact search beside a graph. The async twins use threads.
    """

    def __init__(
        self,
        url: str,
        collection: str = "twinvec",
        config: StoreConfig | None = None,
        *,
        token: str | None = None,
        consistency: Consistency = "Strong",
        timeout: float = 60.0,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a collection, or create it.

        Args:
            url: "milvus://user:password@host:19530/database?tls=true", of which only the host is needed. Where there
                is a secret, another machine is spoken to through TLS unless the URL has ``tls=false``.
            collection: its name: letters, digits and _.
            config: what the store contains; see ``EmbeddedStore``.
            token: a key, or "user:password", unless the URL has a user. Never shown.
            consistency: of reads. "Strong" sees every write that has returned; "Bounded" and "Eventually" are faster
                and may miss the newest; "Session" sees those of this client.
            timeout: seconds per request, and for connecting.
            client_options: further arguments of ``MilvusClient``: ``server_pem_path``, ``server_name`` ...

        Raises:
            ConfigurationError: the URL or the collection is invalid.
            StoreNotFoundError: the collection does not exist and ``config`` is None.
            FingerprintMismatchError: it contains another model's vectors.
            StoreMismatchError: it was created with other settings, or not by TwinVec.
            StoreEngineError: the server cannot be reached, or refused.
        """
        address = Address.parse(url, token)
        self.url = address.shown
        self.collection = self._current = check_name(collection)
        self._place = f"{self.url}, collection {collection}"
        self._consistency, self._timeout, self._closed = consistency, timeout, False
        with self._typed_errors():
            place = {"uri": address.uri, "token": address.token, "db_name": address.database}
            own = f"twinvec-{uuid.uuid4()}"  # pymilvus 2 closes a connection for everyone who shares its name
            self._client = MilvusClient(**place, alias=own, timeout=timeout, **(client_options or {}))
        try:
            self.config = self._open(config)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    async def _upsert(self, batch: RecordBatch) -> None:
        rows = await on_thread(to_rows, batch, self.config)
        await self._claim()
        for start in range(0, len(rows), _CHUNK):
            await self._ask("upsert", data=rows[start : start + _CHUNK])
        await self._claim()

    async def _delete(self, ids: list[str]) -> None:
        await self._claim()
        for start in range(0, len(ids), _IDS):
            await self._ask("delete", ids=[point_id(id) for id in ids[start : start + _IDS]])
        await self._claim()

    async def _delete_where(self, filter: Filter) -> None:
        where = await self._expression(filter)
        await self._claim()
        await self._ask("delete", filter=where)
        await self._claim()

    async def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        found: dict[str, Record] = {}
        for start in range(0, len(ids), _PAGE):
            where = at_points([point_id(id) for id in ids[start : start + _PAGE]])
            rows = await self._rows(where, with_vectors=with_vectors)
            found |= {record.id: record for record in (to_record(row, self.config) for row in rows)}
        return [found[id] for id in ids if id in found]

    async def _count(self, filter: Filter) -> int:
        return await self._counted(await self._expression(filter))

    async def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        where = await self._expression(filter)
        rows = await self._rows(where, with_vectors=with_vectors, after=cursor, most=limit + 1)
        page = [to_record(row, self.config) for row in rows[:limit]]
        return page, rows[limit - 1]["point"] if len(rows) > limit else None

    async def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        where = await self._expression(filter)
        found: dict[int, list[Hit]] = {}
        dense = [i for i, query in enumerate(queries) if isinstance(query, DenseQuery)]
        sparse = [i for i, query in enumerate(queries) if not isinstance(query, DenseQuery) and len(query.vector)]
        read = [] if limit <= _MAX_HITS else [*dense, *sparse]
        if not read:
            for column, rows in ((SPARSE, sparse), (DENSE, [] if exact else dense)):
                ranked = await self._ranked([queries[i] for i in rows], column, limit, where)
                found |= dict(zip(rows, ranked, strict=True))
            read = [i for i in dense if len(found.get(i, [])) < limit]
            # a graph may run out of candidates before enough records have matched
            if read and not exact and await self._counted(where) <= min(len(found[i]) for i in read):
                read = []
        ranked = await self._read_and_rank([queries[i] for i in read], limit, filter)
        found |= dict(zip(read, ranked, strict=True))
        return [found.get(i, []) for i in range(len(queries))]

    async def _ranked(self, queries: list[StoreQuery], column: str, limit: int, where: str) -> list[list[Hit]]:
        """Return the rankings of the server, in one request."""
        if not queries:
            return []
        answers = await self._ask(
            "search",
            data=[_vector(query) for query in queries],
            anns_field=column,
            limit=limit,
            filter="" if where == EVERYTHING else where,
            output_fields=["id"],
            search_params={"metric_type": "IP", "params": {"ef": max(_EF, limit)} if column == DENSE else {}},
            consistency_level=self._consistency,
        )
        return [[Hit(hit["entity"]["id"], hit["distance"]) for hit in hits] for hits in answers]

    async def _read_and_rank(self, queries: list[StoreQuery], limit: int, filter: Filter) -> list[list[Hit]]:
        """Rank every record here, page by page."""
        found: list[list[Hit]] = [[] for _ in queries]
        cursor, done = None, not queries
        while not done:
            page, cursor = await self._scroll(cursor, _PAGE, filter, True)
            ranked = await on_thread(_rank, page, queries, limit, self.config)
            for i, hits in enumerate(ranked):
                found[i] = heapq.nsmallest(limit, found[i] + hits, key=lambda hit: (-hit.score, hit.id))
            done = cursor is None
        return found

    async def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        where = await self._expression(filter)
        counts = [self._count_request(f"array_contains(keys, {key}) and {where}") for key in keys.tolist()]
        return np.array([answer[0]["count(*)"] for answer in await together(counts)], dtype=np.int64)

    async def _info(self) -> StoreInfo:
        graph = await self._ask("describe_index", index_name=DENSE) if self.config.dim is not None else None
        has_graph = graph is not None and graph["indexed_rows"] > 0
        return StoreInfo("milvus", self._place, await self._count(And()), has_graph, None, None, self.config)

    async def _flush(self) -> None:
        self._usable()  # every completed write is in the server's log

    async def _configure(self, config: StoreConfig) -> None:
        await self._ask("alter_collection_properties", properties={PROPERTY: json.dumps(config.to_dict())})
        self.config = config

    async def _optimize(self, progress: Progress | None) -> None:
        # the server builds the graph of segments that are closed: close them all, and wait until it has finished
        start = time.monotonic()
        await self._ask("flush")
        while self.config.dim is not None:
            graph = await self._ask("describe_index", index_name=DENSE)
            if graph["state"] == "Failed":
                raise StoreEngineError(f"{self._place}: the server could not build the graph; see its log")
            if graph["state"] == "Finished" and not graph["pending_index_rows"]:
                break
            if progress is not None:
                progress(time.monotonic() - start, 0)
            await call(time.sleep, asyncio.sleep, _POLL_SECONDS)

    def _answers(self, condition: Filter) -> bool:
        return answers(condition, self.config)

    async def _expression(self, filter: Filter) -> str:
        """Return a filter as an expression; what its columns leave undecided is read."""
        straddling: dict[int, list[str]] = {}
        for leaf in leaves(filter):
            if (where := undecided(leaf, self.config)) is not None:
                rows = await self._rows(where, with_vectors=False)
                straddling[id(leaf)] = [row["point"] for row in rows if matches(leaf, row["id"], row["metadata"])]
        return expression(filter, self.config, straddling)

    async def _rows(
        self, where: str, *, with_vectors: bool, after: str | None = None, most: int | None = None
    ) -> list[dict[str, Any]]:
        """Return rows in the order of their points, in as many requests as it takes."""
        rows: list[dict[str, Any]] = []
        size, done = _PAGE_WITH_VECTORS if with_vectors else _PAGE, False
        while not done:
            limit = size if most is None else min(size, most - len(rows))
            page = await self._ask(
                "query",
                filter=where if after is None else f'point > "{after}" and {where}',
                output_fields=content(self.config, with_vectors=with_vectors),
                limit=limit,
                consistency_level=self._consistency,
                iterator="True",  # as pymilvus' own iterator asks for the lowest points
                reduce_stop_for_best="True",
            )
            rows += page
            done = len(page) < limit or len(rows) == most
            after = page[-1]["point"] if page else None
        return rows

    async def _counted(self, where: str) -> int:
        [row] = await self._count_request(where)
        return int(row["count(*)"])

    def _count_request(self, where: str) -> Call[Any]:
        return self._ask("query", filter=where, output_fields=["count(*)"], consistency_level=self._consistency)

    def _ask(self, method: str, **arguments: Any) -> Call[Any]:
        """Return the call of a method of the client."""
        return on_thread(self._request, method, **arguments)

    def _request(self, method: str, *, of: str | None = None, **arguments: Any) -> Any:
        """Ask about a collection, by default the current one."""
        collection = of or self._current
        with self._typed_errors():
            ask = getattr(self._usable(), method)
            try:
                return ask(collection, timeout=self._timeout, **arguments)
            except MilvusException as error:
                if error.code != _NOT_LOADED:
                    raise
                self._client.load_collection(collection, timeout=self._timeout)  # the server has restarted
                return ask(collection, timeout=self._timeout, **arguments)

    def _usable(self) -> MilvusClient:
        if self._closed:
            raise StoreClosedError(f"the store {self._place} is closed")
        return self._client

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except StoreClosedError:
            raise
        except Exception as error:
            if self._closed:
                raise StoreClosedError(f"the store {self._place} is closed") from None
            message = " ".join(str(getattr(error, "message", error)).split())
            raise StoreEngineError(f"{self._place}: {type(error).__name__}: {message:.500}") from error

    def _make_missing(self, config: StoreConfig | None) -> None:
        if self._request("has_collection"):
            return
        if config is None:
            raise StoreNotFoundError(f"there is no store {self._place}")
        check_name(self._current)
        try:
            self._request(
                "create_collection",
                schema=columns(config),
                properties={PROPERTY: json.dumps(config.to_dict())},
                consistency_level=self._consistency,
            )
        except StoreEngineError:
            if not self._request("has_collection"):  # otherwise another process was faster
                raise

    def _stored(self) -> StoreConfig:
        data = self._request("describe_collection")["properties"].get(PROPERTY)
        if data is None:
            raise StoreMismatchError(
                f"{self._place}: the collection was not created by TwinVec: choose another collection="
            )
        return StoreConfig.from_dict(self._parsed(data), self._place)

    def _parsed(self, data: str) -> Any:
        try:
            return json.loads(data)
        except json.JSONDecodeError as error:
            raise StoreMismatchError(f"{self._place}: its configuration is damaged: {error}") from None

    async def _read_serving(self) -> Serving:
        properties = (await self._ask("describe_collection", of=self.collection))["properties"]
        return Serving.from_dict(self._parsed(properties.get(SERVING, "null")), self.collection, self._place)

    async def _write_serving(self, serving: Serving) -> None:
        properties = {SERVING: json.dumps(asdict(serving))}
        await self._ask("alter_collection_properties", of=self.collection, properties=properties)

    def _prepare(self, config: StoreConfig) -> None:
        """Make the indexes that are missing, as where a process ended before it had made them all, and load."""
        of_arrays = "lite" not in self._client.get_server_version(timeout=self._timeout)
        existing = self._request("list_indexes")
        for name, parameters in indexes(config, of_arrays=of_arrays).items():
            if name not in existing:
                try:
                    self._request("create_index", index_params=parameters, sync=False)  # loading waits for it
                except StoreEngineError:
                    if name not in self._request("list_indexes"):
                        raise
        if self._request("get_load_state")["state"] != LoadState.Loaded:
            self._request("load_collection")

    def __repr__(self) -> str:
        return f"MilvusStore({self.url!r}, {self.collection!r}, model={self.config.model!r}, dim={self.config.dim})"


class MilvusModelStore(ModelStore, MilvusStore):
    """The vectors of a model that does not serve, in a collection of their own."""


def _vector(query: StoreQuery) -> Any:
    return query.vector if isinstance(query, DenseQuery) else query.vector.to_dict()


def _rank(page: Sequence[Record], queries: Sequence[StoreQuery], limit: int, config: StoreConfig) -> list[list[Hit]]:
    if not page:
        return [[] for _ in queries]
    with MemoryStore(config) as store:
        store.upsert(RecordBatch.of(page))
        return store.search(queries, limit=limit)

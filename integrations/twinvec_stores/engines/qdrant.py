"""QdrantStore: a Qdrant server or cluster, through qdrant-client."""

from __future__ import annotations

import asyncio
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from twinvec.errors import (
    ConfigurationError,
    StoreClosedError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec.vectors import Int32, Int64
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.points import DENSE, SPARSE, TERMS, Dialect, payload_path, to_hits, to_record
from twinvec_stores.filters.conditions import And, Filter, HasId
from twinvec_stores.protocol import (
    MAX_SCROLL,
    HybridStore,
    StoreInfo,
    check_limit,
    choose,
    everything,
    search_rounds,
)
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, check_batch, check_ids, point_id

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

_CHUNK = 256  # records in one request
_METADATA = "twinvec"  # key of the collection's metadata
_POLL_SECONDS = 1.0


class _Call(NamedTuple):
    """One request: a method that the sync and the async client have in common, and its arguments."""

    method: str
    arguments: Mapping[str, Any]


class QdrantStore(HybridStore):
    """A collection on a Qdrant server or cluster, version 1.16 or newer (``pip install 'twinvec[qdrant]'``).

    The async twins use the async client: nothing blocks the event loop. Writes return when the server has applied
    them.
    """

    def __init__(
        self,
        url: str | None = None,
        collection: str = "twinvec",
        config: StoreConfig | None = None,
        *,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 60,
        client_options: Mapping[str, Any] | None = None,
        collection_options: Mapping[str, Any] | None = None,
        client: QdrantClient | None = None,
        async_client: AsyncQdrantClient | None = None,
    ) -> None:
        """Open a collection, or make it.

        Args:
            url: the server, as "https://host:6333"; https means TLS.
            collection: the collection's name.
            config: what it holds; see ``EmbeddedStore``.
            api_key: the server's key; refused over plain http, except to this machine. Never logged.
            prefer_grpc: use gRPC where the server offers it.
            timeout: seconds for one request.
            client_options: more arguments of ``QdrantClient`` and ``AsyncQdrantClient``: ``grpc_port``, ``prefix``,
                ``headers``, ``verify`` (a CA bundle) ...
            collection_options: more arguments of ``create_collection``, used when it is made: ``shard_number``,
                ``replication_factor``, ``write_consistency_factor``, ``on_disk_payload``, ``hnsw_config`` ...
            client: use this client instead of ``url``; it stays open on ``close``.
            async_client: its async twin; without it the async methods use threads.

        Raises:
            StoreNotFoundError: the collection is not there and ``config`` is None.
            FingerprintMismatchError: it holds another model's vectors.
            StoreMismatchError: it was made with other settings, or not by TwinVec.
            StoreEngineError: the server cannot be reached, or refused.
        """
        try:
            from qdrant_client import QdrantClient, models
        except ModuleNotFoundError:
            raise ConfigurationError("Qdrant servers need its client: pip install 'twinvec[qdrant]'") from None
        if (url is None) == (client is None):
            raise ConfigurationError("pass url= or client=, one of them")
        if client is not None and (api_key is not None or client_options):
            raise ConfigurationError("api_key and client_options are for url=; the given client has its own")
        if both := sorted({"url", "api_key", "prefer_grpc", "timeout"} & set(client_options or {})):
            raise ConfigurationError(f"client_options: {', '.join(both)} are arguments of their own")
        if url is not None and api_key is not None:
            _refuse_open_key(url)
        self.collection = collection
        self.url = None if url is None else _without_password(url)
        self._models: Any = models
        self._dialect = Dialect(models)
        self._options = {
            **(client_options or {}),
            "url": url,
            "api_key": api_key,
            "prefer_grpc": prefer_grpc,
            "timeout": timeout,
        }
        self._own = client is None
        self._given_async = async_client
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncQdrantClient] = (
            weakref.WeakKeyDictionary()
        )
        self._closed = False
        with self._typed_errors():
            self._client = QdrantClient(**self._options) if client is None else client
        try:
            self.config = self._open(config, dict(collection_options or {}))
        except BaseException:
            self.close()
            raise

    def flush(self) -> None:
        """Do nothing: the server's log has every write that has returned."""
        self._usable()

    def optimize(self, progress: Callable[[float, int], None] | None = None) -> None:
        """Wait until the server has optimized: it does so by itself, in the background."""
        start = time.monotonic()
        while (status := str(self._collection_info().status.value)) not in ("green", "grey"):
            if status == "red":
                raise StoreEngineError(f"collection {self.collection}: the server reports status red; see its log")
            if progress is not None:
                progress(time.monotonic() - start, 0)
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the clients that this store has made; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._own and hasattr(self, "_client"):
                self._client.close()

    async def aclose(self) -> None:
        """See ``close``."""
        client = self._async.pop(asyncio.get_running_loop(), None)
        self._async.clear()  # a client of another loop cannot be closed from this one
        try:
            if client is not None:
                await client.close()
        finally:
            self.close()

    def info(self) -> StoreInfo:
        """Return what the collection holds."""
        info = self._collection_info()
        indexed = (info.indexed_vectors_count or 0) - ((info.points_count or 0) if self.config.sparse else 0)
        location = f"{self.url or 'given client'}, collection {self.collection}"
        return StoreInfo("qdrant", location, self.count(), indexed > 0, info.segments_count, None, self.config)

    async def aupsert(self, batch: RecordBatch) -> None:
        """See ``upsert``."""
        for call in self._upserts(check_batch(batch, self.config)):
            await self._acall(call)

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> None:
        """See ``delete``."""
        await self._acall(self._deletion(choose(ids, filter)))

    async def aget(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """See ``get``."""
        checked = list(dict.fromkeys(check_ids(ids)))
        return self._in_order(checked, await self._acall(self._retrieval(checked, with_vectors))) if checked else []

    async def acount(self, filter: Filter | None = None) -> int:
        """See ``count``."""
        return int((await self._acall(self._counting(everything(filter)))).count)

    async def ascroll(
        self, cursor: str | None = None, *, limit: int = 256, filter: Filter | None = None, with_vectors: bool = False
    ) -> tuple[list[Record], str | None]:
        """See ``scroll``."""
        call = self._scrolling(cursor, check_limit(limit, MAX_SCROLL), everything(filter), with_vectors)
        return self._page(await self._acall(call))

    async def asearch(
        self, queries: Sequence[StoreQuery], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """See ``search``."""
        rounds, condition = search_rounds(queries, limit, self.config), everything(filter)
        step = next(rounds)
        while not step.done:
            asked, call = self._searching(step.queries, step.limit, condition, exact)
            answers = await self._acall(call) if asked else []
            step = rounds.send(_spread(answers, asked, len(step.queries)))
        return step.rankings

    async def adocument_frequencies(self, keys: Int32) -> Int64:
        """See ``document_frequencies``."""
        self._need_idf()
        answers = await asyncio.gather(*(self._acall(call) for call in self._term_counts(keys)))
        return np.array([answer.count for answer in answers], dtype=np.int64)

    def _upsert(self, batch: RecordBatch) -> None:
        for call in self._upserts(batch):
            self._call(call)

    def _delete(self, ids: list[str]) -> None:
        self._call(self._deletion(ids))

    def _delete_where(self, filter: Filter) -> None:
        self._call(self._deletion(filter))

    def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        return self._in_order(ids, self._call(self._retrieval(ids, with_vectors)))

    def _count(self, filter: Filter) -> int:
        return int(self._call(self._counting(filter)).count)

    def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        return self._page(self._call(self._scrolling(cursor, limit, filter, with_vectors)))

    def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        asked, call = self._searching(queries, limit, filter, exact)
        return _spread(self._call(call) if asked else [], asked, len(queries))

    def _document_frequencies(self, keys: Int32) -> Int64:
        return np.array([self._call(call).count for call in self._term_counts(keys)], dtype=np.int64)

    # what to ask, the same for both clients

    def _upserts(self, batch: RecordBatch) -> Iterator[_Call]:
        points = self._dialect.points(batch, self.config)
        for start in range(0, len(points), _CHUNK):
            yield self._request("upsert", points=points[start : start + _CHUNK], wait=True)

    def _deletion(self, chosen: list[str] | Filter) -> _Call:
        filter = self._dialect.filter(HasId(chosen) if isinstance(chosen, list) else chosen)
        return self._request("delete", points_selector=self._models.FilterSelector(filter=filter), wait=True)

    def _retrieval(self, ids: list[str], with_vectors: bool) -> _Call:
        points = [point_id(id) for id in ids]
        return self._request("retrieve", ids=points, with_payload=True, with_vectors=with_vectors)

    def _counting(self, filter: Filter) -> _Call:
        return self._request("count", count_filter=self._filter(filter), exact=True)

    def _term_counts(self, keys: Int32) -> list[_Call]:
        return [self._request("count", count_filter=self._dialect.term(key), exact=True) for key in keys.tolist()]

    def _scrolling(self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool) -> _Call:
        return self._request(
            "scroll",
            offset=cursor,
            limit=limit,
            scroll_filter=self._filter(filter),
            with_payload=True,
            with_vectors=with_vectors,
        )

    def _searching(
        self, queries: Sequence[StoreQuery], limit: int, filter: Filter, exact: bool
    ) -> tuple[list[int], _Call]:
        asked = [i for i, query in enumerate(queries) if isinstance(query, DenseQuery) or len(query.vector)]
        requests = []
        for i in asked:
            vector, name = self._dialect.query(queries[i])
            requests.append(
                self._models.QueryRequest(
                    query=vector,
                    using=name,
                    limit=limit,
                    filter=self._filter(filter),
                    params=self._dialect.parameters(queries[i], self.config, exact=exact),
                    with_payload=["id"],
                )
            )
        return asked, self._request("query_batch_points", requests=requests)

    def _filter(self, filter: Filter) -> Any:
        return None if filter == And() else self._dialect.filter(filter)

    def _request(self, method: str, **arguments: Any) -> _Call:
        return _Call(method, {"collection_name": self.collection, **arguments})

    # what the answers mean

    def _in_order(self, ids: list[str], points: Sequence[Any]) -> list[Record]:
        records = {record.id: record for record in (to_record(point, self.config) for point in points)}
        return [records[id] for id in ids if id in records]

    def _page(self, answer: tuple[Sequence[Any], Any]) -> tuple[list[Record], str | None]:
        points, following = answer
        return [to_record(point, self.config) for point in points], None if following is None else str(following)

    # the clients

    def _call(self, call: _Call) -> Any:
        with self._typed_errors():
            return getattr(self._usable(), call.method)(**call.arguments)

    async def _acall(self, call: _Call) -> Any:
        self._usable()
        client = self._async_client()
        if client is None:
            return await asyncio.to_thread(self._call, call)
        with self._typed_errors():
            return await getattr(client, call.method)(**call.arguments)

    def _async_client(self) -> AsyncQdrantClient | None:
        """Return the client of the running event loop: its connections belong to one loop."""
        if not self._own:
            return self._given_async
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            from qdrant_client import AsyncQdrantClient

            for other in [other for other in self._async if other.is_closed()]:
                self._async.pop(other, None)
            with self._typed_errors():  # the other client has seen to the server's version
                self._async[loop] = AsyncQdrantClient(**{"check_compatibility": False, **self._options})
        return self._async[loop]

    def _usable(self) -> QdrantClient:
        if self._closed:
            raise StoreClosedError(f"the store of collection {self.collection} is closed")
        return self._client

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except StoreClosedError:
            raise
        except Exception as error:
            where = f"{self.url or 'the given client'}, collection {self.collection}"
            raise StoreEngineError(f"{where}: {_reason(error)}") from error

    def _collection_info(self) -> Any:
        return self._call(self._request("get_collection"))

    # opening and making

    def _open(self, config: StoreConfig | None, options: dict[str, Any]) -> StoreConfig:
        if not self._call(self._request("collection_exists")):
            if config is None:
                raise StoreNotFoundError(
                    f"there is no collection {self.collection} on {self.url or 'the given client'}"
                )
            self._make(config, options)
        info = self._collection_info()
        where = f"collection {self.collection}"
        data = (info.config.metadata or {}).get(_METADATA)
        if data is None:
            raise StoreMismatchError(
                f"{where} was not made by TwinVec, or the server is older than 1.16: choose another collection="
            )
        stored = StoreConfig.from_dict(data, where)
        if config is not None:
            stored.check(config, where)
        self._make_indexes(stored, info.payload_schema or {})
        return stored

    def _make(self, config: StoreConfig, options: dict[str, Any]) -> None:
        models = self._models
        int8 = models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        )
        arguments = {
            "vectors_config": {DENSE: models.VectorParams(size=config.dim, distance=models.Distance.DOT)}
            if config.dim is not None
            else {},
            "sparse_vectors_config": {SPARSE: models.SparseVectorParams()} if config.sparse else None,
            "quantization_config": int8 if config.quantization == "int8" else None,
            "metadata": {_METADATA: config.to_dict()},
        }
        if both := sorted(set(options) & {"collection_name", *arguments}):
            raise ConfigurationError(
                f"collection_options: {', '.join(both)} follow from the StoreConfig; leave them out"
            )
        try:
            self._call(self._request("create_collection", **arguments, **options))
        except StoreEngineError:
            if not self._call(self._request("collection_exists")):  # else another process was faster
                raise

    def _make_indexes(self, config: StoreConfig, existing: Mapping[str, Any]) -> None:
        wanted = {payload_path(name): kind for name, kind in config.fields.items()}
        wanted |= {TERMS: "integer"} if config.idf else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")  # in the client's own engine
            for name, kind in wanted.items():
                if name not in existing:
                    self._call(self._request("create_payload_index", field_name=name, field_schema=kind, wait=True))

    def __repr__(self) -> str:
        return f"QdrantStore({self.url!r}, {self.collection!r}, model={self.config.model!r}, dim={self.config.dim})"


def _spread(answers: Sequence[Any], asked: Sequence[int], n: int) -> list[list[Hit]]:
    """Return hits per query: empty ones, which were not asked, find nothing."""
    found: list[list[Hit]] = [[] for _ in range(n)]
    for i, answer in zip(asked, answers, strict=True):
        found[i] = to_hits(answer.points)
    return found


def _refuse_open_key(url: str) -> None:
    from urllib.parse import urlsplit

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigurationError(
            f"an api_key would go over the network in the clear: use https:// for {parts.hostname}"
        )


def _without_password(url: str) -> str:
    """Return what may be shown of an address: a proxy's user and password are for the client alone."""
    start, separator, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{start}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message:.500}" if message else type(error).__name__

"""QdrantStore: a Qdrant server or cluster, through qdrant-client."""

from __future__ import annotations

import asyncio
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.errors import (
    ConfigurationError,
    StoreClosedError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec.flows import Call, call, on_thread, together
from twinvec.vectors import Int32, Int64
from twinvec_stores.addresses import without_secrets
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.points import DENSE, FIRST, SPARSE, Dialect, indexes, to_hits, to_record
from twinvec_stores.engines.serving import ModelStore, ServedStore, Serving
from twinvec_stores.filters.conditions import And, Filter, HasId
from twinvec_stores.protocol import Progress, StoreInfo
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, StoreQuery, point_id

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

_CHUNK = 256  # records per request
_METADATA, _SERVING = "twinvec", "twinvec_serving"  # keys of a collection's metadata
_SPREADING = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
_POLL_SECONDS = 1.0


class QdrantStore(ServedStore):
    """A collection on a Qdrant server or cluster, version 1.16 or newer (``pip install 'twinvec[qdrant]'``).

    The async twins use the async client and never block the event loop. Writes return once the server has applied them.
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
        """Open a collection, or create it.

        Args:
            url: the server's URL, such as "https://host:6333"; https means TLS.
            collection: the collection's name.
            config: what the store contains; see ``EmbeddedStore``.
            api_key: the server's key; refused over plain http, except to this machine. Never logged.
            prefer_grpc: use gRPC if the server offers it.
            timeout: seconds per request.
            client_options: further arguments of ``QdrantClient`` and ``AsyncQdrantClient``: ``grpc_port``, ``prefix``,
                ``headers``, ``verify`` (a CA bundle) ...
            collection_options: further arguments of ``create_collection``, used on creation: ``shard_number``,
                ``replication_factor``, ``write_consistency_factor``, ``on_disk_payload``, ``hnsw_config`` ...
            client: use this client instead of ``url``; ``close`` leaves it open.
            async_client: its async twin; without it, the async methods use threads.

        Raises:
            StoreNotFoundError: the collection does not exist and ``config`` is None.
            FingerprintMismatchError: it contains another model's vectors.
            StoreMismatchError: it was created with other settings, or not by TwinVec.
            StoreEngineError: the server cannot be reached, or refused.
        """
        try:
            from qdrant_client import QdrantClient, models
        except ModuleNotFoundError:
            raise ConfigurationError("Qdrant servers need its client: pip install 'twinvec[qdrant]'") from None
        if (url is None) == (client is None):
            raise ConfigurationError("pass either url= or client=")
        if client is not None and (api_key is not None or client_options):
            raise ConfigurationError("api_key and client_options are for url=; the given client has its own")
        if both := sorted({"url", "api_key", "prefer_grpc", "timeout"} & set(client_options or {})):
            raise ConfigurationError(f"client_options: {', '.join(both)} are separate arguments")
        if url is not None and api_key is not None:
            _refuse_open_key(url)
        self.collection = self._current = collection
        self.url = None if url is None else without_secrets(url if "://" in url else f"http://{url}")
        self._place = f"{self.url or 'the given client'}, collection {collection}"
        self._models: Any = models
        self._options = {
            **(client_options or {}),
            "url": url,
            "api_key": api_key,
            "prefer_grpc": prefer_grpc,
            "timeout": timeout,
        }
        self._creation = dict(collection_options or {})
        self._own = client is None
        self._given_async = async_client
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncQdrantClient] = (
            weakref.WeakKeyDictionary()
        )
        self._closed = False
        with self._typed_errors():
            self._client = QdrantClient(**self._options) if client is None else client
        try:
            self.config = self._open(config)
            self._dialect = Dialect(models, self.config)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the clients that this store has created; a second call does nothing."""
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

    async def _upsert(self, batch: RecordBatch) -> None:
        points = self._dialect.points(batch)
        await self._claim()
        for start in range(0, len(points), _CHUNK):
            await self._ask("upsert", points=points[start : start + _CHUNK], wait=True)
        await self._claim()

    async def _delete(self, ids: list[str]) -> None:
        await self._delete_where(HasId(ids))

    async def _delete_where(self, filter: Filter) -> None:
        selector = self._models.FilterSelector(filter=self._dialect.filter(filter))
        await self._claim()
        await self._ask("delete", points_selector=selector, wait=True)
        await self._claim()

    async def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:
        asked = [point_id(id) for id in ids]
        payload = self._dialect.payload(with_vectors=with_vectors)
        points = await self._ask("retrieve", ids=asked, with_payload=payload, with_vectors=with_vectors)
        records = {record.id: record for record in (to_record(point, self.config) for point in points)}
        return [records[id] for id in ids if id in records]

    async def _count(self, filter: Filter) -> int:
        return int((await self._ask("count", count_filter=self._filter(filter), exact=True)).count)

    async def _scroll(
        self, cursor: str | None, limit: int, filter: Filter, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        points, following = await self._ask(
            "scroll",
            offset=cursor,
            limit=limit,
            scroll_filter=self._filter(filter),
            with_payload=self._dialect.payload(with_vectors=with_vectors),
            with_vectors=with_vectors,
        )
        return [to_record(point, self.config) for point in points], None if following is None else str(following)

    async def _search(self, queries: list[StoreQuery], limit: int, filter: Filter, exact: bool) -> list[list[Hit]]:
        found: list[list[Hit]] = [[] for _ in queries]
        # empty queries are not sent; they find nothing
        asked = [i for i, query in enumerate(queries) if isinstance(query, DenseQuery) or len(query.vector)]
        requests = [self._searching(queries[i], limit, filter, exact) for i in asked]
        answers = await self._ask("query_batch_points", requests=requests) if requests else []
        for i, answer in zip(asked, answers, strict=True):
            found[i] = to_hits(answer.points)
        return found

    def _searching(self, query: StoreQuery, limit: int, filter: Filter, exact: bool) -> Any:
        vector, name = self._dialect.query(query)
        condition = self._filter(filter)
        return self._models.QueryRequest(
            query=vector,
            using=name,
            prefetch=self._dialect.prefetch(query, limit, condition, exact=exact),
            limit=limit,
            filter=condition,
            params=self._dialect.parameters(query, exact=exact),
            with_payload=["id"],
        )

    async def _document_frequencies(self, keys: Int32, filter: Filter) -> Int64:
        asked = [self._ask("count", count_filter=self._dialect.term(key, filter), exact=True) for key in keys.tolist()]
        return np.array([answer.count for answer in await together(asked)], dtype=np.int64)

    async def _info(self) -> StoreInfo:
        info = await self._ask("get_collection")
        indexed = (info.indexed_vectors_count or 0) - ((info.points_count or 0) if self.config.sparse else 0)
        records = await self._count(And())
        return StoreInfo("qdrant", self._place, records, indexed > 0, info.segments_count, None, self.config)

    async def _flush(self) -> None:
        self._usable()  # every completed write is in the server's log

    async def _configure(self, config: StoreConfig) -> None:
        await self._ask("update_collection", metadata={_METADATA: config.to_dict()})
        self.config = config

    async def _optimize(self, progress: Progress | None) -> None:
        # the server optimizes in the background by itself: wait until it has finished
        start = time.monotonic()
        while (status := str((await self._ask("get_collection")).status.value)) not in ("green", "grey"):
            if status == "red":
                raise StoreEngineError(f"collection {self.collection}: the server reports status red; see its log")
            if progress is not None:
                progress(time.monotonic() - start, 0)
            await call(time.sleep, asyncio.sleep, _POLL_SECONDS)

    def _answers(self, condition: Filter) -> bool:
        return self._dialect.answers(condition)

    def _filter(self, filter: Filter) -> Any:
        return None if filter == And() else self._dialect.filter(filter)

    def _ask(self, method: str, **arguments: Any) -> Call[Any]:
        """Return a request: a method that the sync and async clients share, and its arguments."""
        arguments.setdefault("collection_name", self._current)
        return Call(lambda: self._blocking(method, arguments), lambda: self._awaiting(method, arguments))

    def _blocking(self, method: str, arguments: Mapping[str, Any]) -> Any:
        with self._typed_errors():
            return getattr(self._usable(), method)(**arguments)

    async def _awaiting(self, method: str, arguments: Mapping[str, Any]) -> Any:
        self._usable()
        client = self._async_client()
        if client is None:
            return await on_thread(self._blocking, method, arguments).awaiting()
        with self._typed_errors():
            return await getattr(client, method)(**arguments)

    def _async_client(self) -> AsyncQdrantClient | None:
        """Return the client of the running event loop, since connections belong to one loop."""
        if not self._own:
            return self._given_async
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            from qdrant_client import AsyncQdrantClient

            for other in [other for other in self._async if other.is_closed()]:
                self._async.pop(other, None)
            with self._typed_errors():  # the sync client has checked the server's version
                self._async[loop] = AsyncQdrantClient(**{"check_compatibility": False, **self._options})
        return self._async[loop]

    def _usable(self) -> QdrantClient:
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
            raise StoreEngineError(f"{self._place}: {_reason(error)}") from error

    def _make_missing(self, config: StoreConfig | None) -> None:
        if self._ask("collection_exists").blocking():
            return
        if config is None:
            raise StoreNotFoundError(f"there is no collection {self._current} on {self.url or 'the given client'}")
        arguments = {
            "vectors_config": _dense_vectors(self._models, config),
            "sparse_vectors_config": {SPARSE: self._models.SparseVectorParams()} if config.sparse else None,
            "quantization_config": _quantization(self._models, config),
            "metadata": {_METADATA: config.to_dict()},
        }
        if both := sorted(set(self._creation) & {"collection_name", *arguments}):
            raise ConfigurationError(f"collection_options: {', '.join(both)} follow from the StoreConfig; omit them")
        try:
            self._ask("create_collection", **arguments, **self._creation).blocking()
        except StoreEngineError:
            if not self._ask("collection_exists").blocking():  # otherwise another process was faster
                raise

    def _stored(self) -> StoreConfig:
        data = (self._ask("get_collection").blocking().config.metadata or {}).get(_METADATA)
        if data is None:
            raise StoreMismatchError(
                f"{self._place} was not created by TwinVec, or the server is older than 1.16: choose another "
                "collection="
            )
        return StoreConfig.from_dict(data, self._place)

    def _prepare(self, config: StoreConfig) -> None:
        existing = self._ask("get_collection").blocking().payload_schema or {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")  # in the client's own engine
            for name, kind in indexes(config).items():
                if name not in existing:
                    self._ask("create_payload_index", field_name=name, field_schema=kind, wait=True).blocking()

    async def _read_serving(self) -> Serving:
        metadata = (await self._ask("get_collection", collection_name=self.collection)).config.metadata or {}
        return Serving.from_dict(metadata.get(_SERVING), self.collection, self._place)

    async def _write_serving(self, serving: Serving) -> None:
        metadata = {_SERVING: asdict(serving)}
        await self._ask("update_collection", collection_name=self.collection, metadata=metadata)

    def __repr__(self) -> str:
        return f"QdrantStore({self.url!r}, {self.collection!r}, model={self.config.model!r}, dim={self.config.dim})"


class QdrantModelStore(ModelStore, QdrantStore):
    """The vectors of a model that does not serve, in a collection that is spread like the one that serves."""

    def _make_missing(self, config: StoreConfig | None) -> None:
        if config is not None:
            serving = self._ask("get_collection", collection_name=self._serving.collection).blocking().config
            given = {name: getattr(serving.params, name) for name in _SPREADING}
            given["hnsw_config"] = self._models.HnswConfigDiff(**serving.hnsw_config.model_dump(exclude_none=True))
            self._creation = {name: value for name, value in given.items() if value is not None}
        super()._make_missing(config)


def _dense_vectors(models: Any, config: StoreConfig) -> dict[str, Any]:
    vectors = {}
    if config.dim is not None:
        beside = None if config.quantization is None else True  # what is searched first is in memory instead
        graph = models.HnswConfigDiff(m=0) if config.first_dim else None
        dense = {"size": config.dim, "distance": models.Distance.DOT, "on_disk": beside, "hnsw_config": graph}
        vectors[DENSE] = models.VectorParams(**dense)
    if config.first_dim:
        vectors[FIRST] = models.VectorParams(size=config.first_dim, distance=models.Distance.DOT)
    return vectors


def _quantization(models: Any, config: StoreConfig) -> Any:
    if config.quantization == "int8":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        return models.ScalarQuantization(scalar=scalar)
    if config.quantization == "binary":
        encoding = models.BinaryQuantizationQueryEncoding.SCALAR8BITS
        return models.BinaryQuantization(
            binary=models.BinaryQuantizationConfig(always_ram=True, query_encoding=encoding)
        )
    return None


def _refuse_open_key(url: str) -> None:
    from urllib.parse import urlsplit

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigurationError(
            f"an api_key would be sent over the network unencrypted: use https:// for {parts.hostname}"
        )


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message:.500}" if message else type(error).__name__

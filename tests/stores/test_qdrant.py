"""What a Qdrant server is asked, and how its answers and failures are taken; the server is the client's own engine."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

import httpx
import numpy as np
import pytest
import qdrant_client
from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from stores.conftest import local_clients
from stores.oracle import Row, batch, dense_query, sparse_query
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreClosedError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.filters.conditions import And, Eq, HasId
from twinvec_stores.records import StoreQuery

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

CONFIG = StoreConfig(
    fingerprint="one", model="models/one", dim=4, idf=True, fields={"i": "integer", '"a b"': "keyword"}
)
ROWS = [Row(f"r{i}", f"text {i}", {"i": i}, sparse={i % 3: 1.0}) for i in range(5)]
KEY = "a-very-secret-key"


class Recorded:
    """A client that remembers what it was asked; ``answers`` replaces some of what it says."""

    def __init__(self, client: Any, **answers: Callable[..., Any]) -> None:
        self.client = client
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        method = self.answers.get(name) or getattr(self.client, name)

        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            return method(**arguments)

        return call

    def asked(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def recorded(**answers: Callable[..., Any]) -> Recorded:
    return Recorded(local_clients()[0], **answers)


def open_store(client: Any, config: StoreConfig | None = CONFIG, **options: Any) -> QdrantStore:
    return QdrantStore(client=client, collection="kb", config=config, **options)


class Servers:
    """Stands for ``QdrantClient`` and ``AsyncQdrantClient``: every client that a store makes, on one engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.local, self.local_async = local_clients()
        self.made: list[tuple[str, dict[str, Any], Recorded]] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        monkeypatch.setattr(qdrant_client, "QdrantClient", self.make_sync)
        monkeypatch.setattr(qdrant_client, "AsyncQdrantClient", self.make_async)

    def make_sync(self, **options: Any) -> Recorded:
        return self._make("sync", Recorded(self.local, close=lambda: None), options)

    def make_async(self, **options: Any) -> Recorded:
        async def close() -> None:
            """The engine is still needed."""

        self.loops.append(asyncio.get_running_loop())
        return self._make("async", Recorded(self.local_async, close=close), options)

    def _make(self, kind: str, client: Recorded, options: dict[str, Any]) -> Recorded:
        self.made.append((kind, options, client))
        return client

    def of(self, kind: str) -> list[Recorded]:
        return [client for made, _, client in self.made if made == kind]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(monkeypatch)


# making a collection


def test_what_a_collection_is_made_with() -> None:
    client = recorded()
    options = {"shard_number": 6, "replication_factor": 2, "write_consistency_factor": 2, "on_disk_payload": True}
    open_store(client, collection_options=options)
    open_store(client, collection_options=options)
    [asked] = client.asked("create_collection")
    assert asked["collection_name"] == "kb"
    assert {name: asked[name] for name in options} == options
    assert asked["vectors_config"] == {"dense": models.VectorParams(size=4, distance=models.Distance.DOT)}
    assert set(asked["sparse_vectors_config"]) == {"sparse"}
    assert asked["quantization_config"] is None
    assert asked["metadata"] == {"twinvec": CONFIG.to_dict()}


def test_quantization_is_the_servers() -> None:
    client = recorded()
    with open_store(client, StoreConfig(fingerprint="one", dim=4, sparse=False, quantization="int8")) as store:
        store.search([dense_query(1, 0, 0, 0)], limit=3, exact=True)
    [asked] = client.asked("create_collection")
    assert asked["quantization_config"].scalar.type == models.ScalarType.INT8
    assert asked["sparse_vectors_config"] is None
    [request] = client.asked("query_batch_points")[0]["requests"]
    assert request.params.exact is True
    assert request.params.quantization.rescore is True


@pytest.mark.parametrize(
    "name", ["vectors_config", "sparse_vectors_config", "quantization_config", "metadata", "collection_name"]
)
def test_what_follows_from_the_config_cannot_be_given(name: str) -> None:
    client = recorded()
    with pytest.raises(ConfigurationError, match=name):
        open_store(client, collection_options={name: {}})
    assert client.asked("create_collection") == []


def test_declared_fields_and_terms_are_indexed_once() -> None:
    def with_schema(**arguments: Any) -> Any:
        info = client.client.get_collection(**arguments)
        index = models.PayloadIndexInfo(data_type=models.PayloadSchemaType.KEYWORD, points=0)
        info.payload_schema = dict.fromkeys(indexed, index)
        return info

    indexed: list[str] = []
    client = recorded(get_collection=with_schema)
    open_store(client)
    asked = client.asked("create_payload_index")
    assert {(a["field_name"], a["field_schema"], a["wait"]) for a in asked} == {
        ("metadata.i", "integer", True),
        ('metadata."a b"', "keyword", True),
        ("terms", "integer", True),
    }
    indexed += ["metadata.i", "terms"]  # the third was not made any more, by a process that was killed
    client.calls.clear()
    open_store(client, None)
    assert [a["field_name"] for a in client.asked("create_payload_index")] == ['metadata."a b"']


def test_nothing_is_made_without_a_config() -> None:
    client = recorded()
    with pytest.raises(StoreNotFoundError, match="no collection kb"):
        open_store(client, None)
    assert client.asked("create_collection") == []


def test_a_foreign_collection_is_left_alone() -> None:
    client = recorded()
    client.client.create_collection("kb", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="not made by TwinVec"):
            open_store(client, config)
    assert {name for name, _ in client.calls} == {"collection_exists", "get_collection"}


def test_another_model_is_refused_and_both_are_named() -> None:
    client = recorded()
    open_store(client)
    with pytest.raises(FingerprintMismatchError) as caught:
        open_store(client, StoreConfig(fingerprint="two", model="models/two", dim=4, idf=True))
    assert (caught.value.stored, caught.value.given) == ("one", "two")
    with pytest.raises(StoreMismatchError, match="dim=4 instead of 8"):
        open_store(client, StoreConfig(fingerprint="one", dim=8, idf=True))
    assert open_store(client, StoreConfig(fingerprint="one", dim=4, idf=True)).config == CONFIG


@pytest.mark.parametrize("metadata", [{"schema_version": 2}, {"schema_version": 1}, [], "x", {}])
def test_metadata_that_cannot_be_read_is_refused(metadata: Any) -> None:
    client = recorded()
    client.client.create_collection("kb", vectors_config={}, metadata={"twinvec": metadata})
    with pytest.raises(StoreMismatchError, match="collection kb"):
        open_store(client)


@pytest.mark.parametrize("others", [CONFIG, StoreConfig(fingerprint="two", dim=4)])
def test_of_two_that_make_a_collection_at_once_the_slower_one_opens_it(others: StoreConfig) -> None:
    def create(**arguments: Any) -> Any:
        open_store(client.client, others).upsert(batch(ROWS, others))
        return client.client.create_collection(**arguments)  # which exists now

    client = recorded(create_collection=create)
    if others == CONFIG:
        assert open_store(client).count() == 5
    else:
        with pytest.raises(FingerprintMismatchError):
            open_store(client)


def test_a_collection_that_cannot_be_made_is_an_engine_error() -> None:
    def refuse(**arguments: Any) -> Any:
        raise answered(403, "Forbidden", b'{"status":{"error":"Global manage access is required"}}')

    with pytest.raises(StoreEngineError, match=r"kb.*Global manage access is required"):
        open_store(recorded(create_collection=refuse))


# requests


def test_one_request_answers_all_queries_and_large_batches_go_in_parts() -> None:
    client = recorded()
    with open_store(client) as store:
        rows = [Row(f"r{i}", sparse={1: 1.0}) for i in range(600)]
        store.upsert(batch(rows, CONFIG))
        upserts = client.asked("upsert")
        assert [len(a["points"]) for a in upserts] == [256, 256, 88]
        assert {a["wait"] for a in upserts} == {True}
        queries: list[StoreQuery] = [dense_query(1, 0, 0, 0), sparse_query({}), sparse_query({1: 1.0})]
        rankings = store.search(queries, limit=3, filter=HasId(["r5", "r4"]))
        assert [[hit.id for hit in hits] for hits in rankings] == [["r4", "r5"], [], ["r4", "r5"]]
        [asked] = client.asked("query_batch_points")
        assert [request.using for request in asked["requests"]] == ["dense", "sparse"]
        store.search([sparse_query({})], limit=3)
        assert len(client.asked("query_batch_points")) == 1
        store.delete(["r1"])
        store.delete(filter=Eq("i", 1))
        assert [a["wait"] for a in client.asked("delete")] == [True, True]


def answered(status: int, reason: str, content: bytes) -> UnexpectedResponse:
    return UnexpectedResponse(status, reason, content, httpx.Headers())


CALLS: dict[str, Callable[[QdrantStore], Any]] = {
    "upsert": lambda store: store.upsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.delete(["nobody"]),
    "delete_where": lambda store: store.delete(filter=Eq("i", 77)),
    "get": lambda store: store.get(["r0"]),
    "count": lambda store: store.count(),
    "scroll": lambda store: store.scroll(),
    "search": lambda store: store.search([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.document_frequencies(np.array([1], np.int32)),
}
ASYNC_CALLS: dict[str, Callable[[QdrantStore], Any]] = {
    "upsert": lambda store: store.aupsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.adelete(["nobody"]),
    "delete_where": lambda store: store.adelete(filter=Eq("i", 77)),
    "get": lambda store: store.aget(["r0"]),
    "count": lambda store: store.acount(),
    "scroll": lambda store: store.ascroll(),
    "search": lambda store: store.asearch([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.adocument_frequencies(np.array([1], np.int32)),
}
METHODS = {"get": "retrieve", "delete_where": "delete", "search": "query_batch_points", "document_frequencies": "count"}
SYNC_ONLY: dict[str, Callable[[QdrantStore], Any]] = {
    "info": lambda store: store.info(),
    "flush": lambda store: store.flush(),
    "optimize": lambda store: store.optimize(),
}


def directly(call: Callable[[QdrantStore], Any], store: QdrantStore) -> Any:
    return call(store)


def awaited(call: Callable[[QdrantStore], Any], store: QdrantStore) -> Any:
    async def run() -> Any:
        return await call(store)

    return asyncio.run(run())


@pytest.mark.parametrize("call", CALLS)
def test_async_methods_use_the_async_client(call: str) -> None:
    local, local_async = local_clients()
    client, async_client = Recorded(local), Recorded(local_async)
    store = open_store(client, async_client=async_client)
    client.calls.clear()
    answer = awaited(ASYNC_CALLS[call], store)
    assert client.calls == []
    assert [name for name, _ in async_client.calls] == [METHODS.get(call, call)]
    by_sync = CALLS[call](store)
    assert str(answer) == str(by_sync)
    assert [name for name, _ in client.calls] == [METHODS.get(call, call)]
    assert str(client.calls[0][1]) == str(async_client.calls[0][1])


@pytest.mark.parametrize("call", CALLS)
def test_async_methods_do_without_an_async_client(call: str) -> None:
    client = recorded()
    store = open_store(client)
    client.calls.clear()
    awaited(ASYNC_CALLS[call], store)
    assert [name for name, _ in client.calls] == [METHODS.get(call, call)]


@pytest.mark.parametrize("call", CALLS)
def test_what_the_server_says_reaches_the_caller(call: str) -> None:
    def refuse(**arguments: Any) -> Any:
        raise answered(400, "Bad Request", b'{"status":{"error":"Wrong input: strict mode"},"time":0.1}')

    async def refuse_async(**arguments: Any) -> Any:
        refuse()

    local, local_async = local_clients()
    method = METHODS.get(call, call)
    store = open_store(
        Recorded(local, **{method: refuse}), async_client=Recorded(local_async, **{method: refuse_async})
    )
    for use, calls in ((directly, CALLS), (awaited, ASYNC_CALLS)):
        with pytest.raises(StoreEngineError, match=r"collection kb.*400.*Wrong input: strict mode"):
            use(calls[call], store)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interruption_is_none_of_the_servers(interruption: type[BaseException]) -> None:
    def interrupt(**arguments: Any) -> Any:
        raise interruption

    store = open_store(recorded(count=interrupt))
    with pytest.raises(interruption):
        store.count()


def test_optimize_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(**arguments: Any) -> Any:
        info = client.client.get_collection(**arguments)
        info.status = models.CollectionStatus(statuses.pop(0) if statuses else "green")
        return info

    monkeypatch.setattr("twinvec_stores.engines.qdrant._POLL_SECONDS", 0)
    statuses: list[str] = []
    client = recorded(get_collection=status)
    store = open_store(client)
    statuses += ["yellow", "yellow", "green", "red"]
    steps: list[tuple[float, int]] = []
    store.optimize(lambda seconds, size: steps.append((seconds, size)))
    assert len(steps) == 2
    assert statuses == ["red"]
    with pytest.raises(StoreEngineError, match="red"):
        store.optimize()


def test_info_tells_what_is_there() -> None:
    with open_store(recorded()) as store:
        store.upsert(batch(ROWS, CONFIG))
        info = store.info()
        assert (info.engine, info.records, info.bytes, info.config) == ("qdrant", 5, None, CONFIG)
        assert "kb" in info.location
        assert "kb" in repr(store)


# clients


def test_a_given_client_stays_open() -> None:
    local, local_async = local_clients()
    client, async_client = Recorded(local), Recorded(local_async)
    store = open_store(client, async_client=async_client)
    store.close()
    asyncio.run(store.aclose())
    assert client.asked("close") == async_client.asked("close") == []
    assert open_store(client).count() == 0


@pytest.mark.parametrize("call", [*CALLS, *SYNC_ONLY])
def test_a_closed_store_says_so(call: str) -> None:
    store = open_store(recorded())
    store.close()
    store.close()
    for use, calls in ((directly, {**CALLS, **SYNC_ONLY}), (awaited, ASYNC_CALLS)):
        if call in calls:
            with pytest.raises(StoreClosedError, match="kb"):
                use(calls[call], store)


def test_clients_of_a_url_are_made_as_asked_and_closed(servers: Servers) -> None:
    store = QdrantStore(
        "https://qdrant.example:6333",
        "kb",
        CONFIG,
        api_key=KEY,
        prefer_grpc=True,
        timeout=7,
        client_options={"grpc_port": 7334, "headers": {"x": "y"}},
    )
    expected = {
        "url": "https://qdrant.example:6333",
        "api_key": KEY,
        "prefer_grpc": True,
        "timeout": 7,
        "grpc_port": 7334,
        "headers": {"x": "y"},
    }

    async def use() -> None:
        await store.aupsert(batch(ROWS, CONFIG))
        assert await store.acount() == 5
        await store.aclose()

    asyncio.run(use())
    assert [kind for kind, _, _ in servers.made] == ["sync", "async"]
    for _, options, client in servers.made:
        assert {name: options.get(name) for name in expected} == expected
        assert len(client.asked("close")) == 1
    with pytest.raises(StoreClosedError):
        store.count()


def test_event_loops_one_after_the_other_have_clients_of_their_own(servers: Servers) -> None:
    store = QdrantStore("http://localhost:6333", "kb", CONFIG)
    awaited(ASYNC_CALLS["upsert"], store)

    async def twice() -> list[int]:
        return [await store.acount(), await store.acount(Eq("i", 1))]

    assert [asyncio.run(twice()), asyncio.run(twice())] == [[5, 1], [5, 1]]
    first, second, third = servers.of("async")
    assert len(set(map(id, servers.loops))) == 3
    assert [len(client.calls) for client in (first, second, third)] == [1, 2, 2]

    async def in_a_fourth() -> None:
        await store.acount()
        await store.aclose()

    asyncio.run(in_a_fourth())
    assert [len(client.asked("close")) for client in servers.of("async")] == [0, 0, 0, 1]  # the others' loops are gone
    assert len(servers.of("sync")[0].asked("close")) == 1


def test_a_store_that_cannot_be_opened_closes_its_client(servers: Servers) -> None:
    with pytest.raises(StoreNotFoundError):
        QdrantStore("http://localhost:6333", "kb")
    assert len(servers.of("sync")[0].asked("close")) == 1


def test_a_password_in_the_address_is_never_shown(servers: Servers) -> None:
    store = QdrantStore("https://reader:s3cret@host:6333/qdrant", "kb", CONFIG)
    assert servers.made[0][1]["url"] == "https://reader:s3cret@host:6333/qdrant"
    assert store.url == "https://host:6333/qdrant"
    assert "s3cret" not in repr(store)
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://qdrant.example:6333",
        "HTTP://qdrant.example",
        "qdrant.example:6333",
        "qdrant.example",
        "http://10.0.0.7:6333",
        "http://localhost.evil.example",
        "http://localhost@evil.example",
        "http://127.0.0.1.evil.example",
    ],
)
def test_an_api_key_does_not_travel_in_the_clear(servers: Servers, url: str) -> None:
    with pytest.raises(ConfigurationError, match="in the clear") as caught:
        QdrantStore(url, "kb", CONFIG, api_key=KEY)
    assert KEY not in str(caught.value)
    assert servers.made == []


@pytest.mark.parametrize(
    "url",
    [
        "https://qdrant.example",
        "HTTPS://qdrant.example",
        "http://localhost:6333",
        "http://127.0.0.1",
        "http://[::1]:6333",
    ],
)
def test_an_api_key_goes_where_nobody_listens(servers: Servers, url: str) -> None:
    store = QdrantStore(url, "kb", CONFIG, api_key=KEY)
    assert servers.made[0][1]["api_key"] == KEY
    for text in (repr(store), str(store.info())):
        assert KEY not in text


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("prefer_grpc", [False, True])
def test_a_server_that_is_not_there_is_an_engine_error(prefer_grpc: bool) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]  # nobody listens there
        with pytest.raises(StoreEngineError, match=f"http://127.0.0.1:{port}, collection kb") as caught:
            QdrantStore(
                f"http://127.0.0.1:{port}",
                "kb",
                CONFIG,
                api_key=KEY,
                prefer_grpc=prefer_grpc,
                timeout=2,
                client_options={"grpc_port": port, "check_compatibility": False},
            )
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_contradictions_are_refused(servers: Servers) -> None:
    given = cast(Any, recorded())
    for options, words in [
        ({}, "one of them"),
        ({"url": "http://localhost", "client": given}, "one of them"),
        ({"client": given, "api_key": KEY}, "given client"),
        ({"client": given, "client_options": {"prefix": "x"}}, "given client"),
        ({"url": "http://localhost", "client_options": {"api_key": KEY, "timeout": 5}}, "api_key, timeout"),
    ]:
        with pytest.raises(ConfigurationError, match=words) as caught:
            QdrantStore(collection="kb", config=CONFIG, **cast(Any, options))
        assert KEY not in str(caught.value)
    assert servers.made == []


def test_the_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[qdrant\]'"):
        QdrantStore("http://localhost:6333", "kb", CONFIG)


def test_deleting_everything_must_be_said() -> None:
    with open_store(recorded()) as store:
        store.upsert(batch(ROWS, CONFIG))
        store.delete(filter=And())
        assert store.count() == 0
